"""The one place that turns what a person typed into a path, and says what is wrong with it in one line.

Nothing here makes or changes a file. Every ConfigError names the path as it was understood.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path

from distributed_training.errors import ConfigError

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of Linux; no file system in use has less for a name
MAX_ENDING_BYTES = 55
NO_HOME = "/nonexistent"  # what Debian gives to users without a home


def typed(text: str | Path) -> Path:
    """Absolute, `~` and `~user` replaced. Asks nothing of the disk. Raises ConfigError."""
    text = str(text)
    if not text.strip():
        raise ConfigError("expected a path, got an empty text")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ConfigError(f"expected a path without line breaks and control characters, got {text!r}")
    if text.startswith("~"):
        user, slash, rest = text[1:].partition("/")
        text = _home(user) + slash + rest
    try:
        path = Path(text).absolute()
    except FileNotFoundError:
        raise ConfigError(f"{text}: the current folder is gone; change to another one or give the whole path") from None
    encoded = os.fsencode(path)
    if len(encoded) > MAX_PATH_BYTES:
        raise ConfigError(f"{shown(path)}: the path is longer than {MAX_PATH_BYTES} bytes")
    if any(len(name) > MAX_NAME_BYTES for name in encoded.split(b"/")):
        raise ConfigError(f"{shown(path)}: a name in it is longer than {MAX_NAME_BYTES} bytes")
    return path


def file_name(text: str) -> str:
    """A name that a person gave and that becomes a file's, with endings: of a key, a run. Raises ConfigError."""
    if text.strip() in ("", ".", "..") or text.startswith("-") or any(c in "/\\" or ord(c) < 32 for c in text):
        raise ConfigError(f"expected a name without slashes, line breaks and a leading dash, got {text!r}")
    if len(os.fsencode(text)) > MAX_NAME_BYTES - MAX_ENDING_BYTES:
        raise ConfigError(f"expected a name of at most {MAX_NAME_BYTES - MAX_ENDING_BYTES} bytes, got {text[:40]!r}...")
    return text


def shown(path: Path) -> str:
    """Both ends of a path that is too long for a line."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:80]}...{text[-40:]}"


def is_missing(path: Path) -> bool:
    """Nothing is there. Raises ConfigError when we may not look."""
    return _kind(path) is None


def existing_file(path: Path) -> Path:
    """One that we may read. Raises ConfigError."""
    kind = _kind(path)
    if kind != "file":
        raise ConfigError(f"expected a file, {_what_is_there(path, kind)}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{path}: this user may not read the file")
    return path


def existing_folder(path: Path) -> Path:
    """One whose files we may list. Raises ConfigError."""
    kind = _kind(path)
    if kind != "folder":
        raise ConfigError(f"expected a folder, {_what_is_there(path, kind)}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise ConfigError(f"{path}: this user may not read the folder")
    return path


def existing(path: Path) -> Path:
    """A file or a folder that we may read. Raises ConfigError."""
    if _kind(path) is None:
        raise ConfigError(f"expected a file or a folder, {path} does not exist")
    return existing_file(path) if _kind(path) == "file" else existing_folder(path)


def usable_folder(path: Path) -> Path:
    """One that we may write to, or that we could make with its parents. Raises ConfigError."""
    kind = _kind(path)
    if kind not in ("folder", None):
        raise ConfigError(f"expected a folder, {_what_is_there(path, kind)}")
    there = path
    while _kind(there) is None and there != there.parent:
        there = there.parent
    if _kind(there) != "folder":
        raise ConfigError(f"{path}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            raise ConfigError(f"{path}: the disk of {there} is mounted read-only (after an error of it? see dmesg)")
        what = "write to this folder" if there == path else f"make it: {there} is closed to this user"
        raise ConfigError(f"{path}: this user may not {what}")
    return path


def new_file(path: Path) -> Path:
    """One that is or can be written, in a folder that is there. Raises ConfigError."""
    kind, parent = _kind(path), path.parent
    if kind not in ("file", "device or pipe", None):
        raise ConfigError(f"expected a file, {_what_is_there(path, kind)}")
    if _kind(parent) != "folder":
        raise ConfigError(f"{path}: the folder {parent} does not exist")
    written = path if kind == "device or pipe" else parent  # a file is replaced whole, a device is not
    if not os.access(written, os.W_OK):
        raise ConfigError(f"{path}: this user may not write there")
    return path


def lend_home() -> None:
    """For a user without a home: libraries that ask for one when they are imported get a folder that is not there."""
    try:
        _home("")
    except ConfigError:
        os.environ["HOME"] = NO_HOME


def _home(user: str) -> str:
    """`user`: the empty text for our own."""
    own = "" if user else os.environ.get("HOME", "")
    if own not in ("", NO_HOME):
        return own
    try:
        return (pwd.getpwnam(user) if user else pwd.getpwuid(os.getuid())).pw_dir
    except (KeyError, ValueError):
        missing = f"there is no user {user!r}" if user else "this user has no home folder (HOME is not set)"
        raise ConfigError(f"~{user}: {missing}; give the whole path") from None


def _kind(path: Path) -> str | None:
    """file, folder, dangling link, device or pipe; None: nothing is there. Raises ConfigError if we may not look."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "dangling link" if path.is_symlink() else None
    except NotADirectoryError:
        return None
    except OSError as error:
        why = "this user may not look there" if error.errno == errno.EACCES else error.strerror
        raise ConfigError(f"{shown(path)}: {why}") from None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "device or pipe"


def _what_is_there(path: Path, kind: str | None) -> str:
    if kind == "dangling link":
        return f"{path} is a link to {path.readlink()}, which is not there"
    return f"{path} does not exist" if kind is None else f"{path} is a {kind}"
