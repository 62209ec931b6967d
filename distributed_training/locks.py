"""Folders that only one process may use at a time: the kernel's lock on a file in the folder, that says who holds it.

The kernel drops the lock when its process ends, however it ends, so a file that a killed process left blocks nobody.
Processes that the holder starts do not inherit it unless they are given `fileno`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Self

from distributed_training.errors import ConfigError

LOCK_FILE = "lock"
MAX_COMMAND, MAX_HOST = 160, 64  # characters that are shown of the holder's
POLL_S = 0.1
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class InUse(ConfigError):
    """Another process has the folder."""


@dataclass(frozen=True, slots=True)
class Holder:
    """What a lock file says of the process that wrote it last; that one need not live any more."""

    pid: int
    command: str
    host: str  # a folder may be shared with other machines and containers
    since: datetime  # in this machine's time zone

    @property
    def lives(self) -> bool:
        """True for what cannot be seen from here."""
        if self.host != os.uname().nodename:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # another user's
            pass
        return _command_of(self.pid) in (self.command, None)  # else the number is another process's by now

    def __str__(self) -> str:
        where = "" if self.host == os.uname().nodename else f" on {self.host}"
        said = f"process {self.pid}{where} ({self.command}, since {self.since:%Y-%m-%d %H:%M:%S})"
        return said if self.lives else f"what {said} left when it ended, for some seconds more"


class Lock:
    """This process alone uses `folder`, which is made if need be, until `release` or the end of the process.

    `advice` is what a person should do who is refused. `wait_s`: how long to wait for the other one. `shown`: what the
    file called `name` stands for, if not the folder. Raises InUse with the holder, and ConfigError for a folder that
    cannot be written or whose file system knows no locks.
    """

    def __init__(
        self, folder: Path, advice: str, *, name: str = LOCK_FILE, wait_s: float = 0.0, shown: Path | None = None
    ) -> None:
        self._file: BinaryIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / name).open("ab")
        except OSError as error:
            why = "it is a file" if folder.is_file() else error.strerror
            where = folder / name if folder.is_dir() else folder  # the file may be another user's
            raise ConfigError(f"cannot write to {where}: {why}") from None
        try:
            _lock(file, time.monotonic() + wait_s)
            file.truncate(0)
            file.write(f"{os.getpid()}\n{_one_line(sys.orig_argv)}\n{os.uname().nodename}\n".encode())
            file.flush()
        except OSError as error:
            file.close()
            if error.errno in TAKEN:
                user = holder(folder, name) or "another process"
                raise InUse(f"{shown or folder} is in use by {user}; {advice}") from None
            raise ConfigError(
                f"cannot lock {folder / name}: {error.strerror}; this folder has to be on a disk with room whose file "
                "system knows locks"
            ) from None
        self._file = file

    def fileno(self) -> int:
        """For a process that is to hold the lock too, until it ends. ValueError once it is released."""
        if self._file is None:
            raise ValueError("the lock is released")
        return self._file.fileno()

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes lock two files of one name."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(folder: Path, name: str = LOCK_FILE) -> Holder | None:
    """Who locked the folder last; None if nobody did, or if that cannot be read."""
    try:
        with (folder / name).open("rb") as file:
            text, since = file.read(4096).decode(errors="replace"), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    pid, command, host = (*text.split("\n"), "", "")[:3]
    if not (pid.isascii() and pid.isdigit()):
        return None
    host = host[:MAX_HOST] or os.uname().nodename
    return Holder(int(pid), _shown(command) or "unknown", host, datetime.fromtimestamp(since))


def held(folder: Path, name: str = LOCK_FILE) -> Holder | None:
    """The process that has the folder now; None if none has. Changes nothing there."""
    try:
        with (folder / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return holder(folder, name) if error.errno in TAKEN else None
    return None


def _shown(command: str) -> str:
    return command if len(command) <= MAX_COMMAND else command[:MAX_COMMAND] + "..."


def _one_line(argv: Sequence[str]) -> str:
    return " ".join(shlex.join(argv).encode(errors="backslashreplace").decode().split())


def _command_of(pid: int) -> str | None:
    """As a lock file has it; None where this machine does not say."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return None
    return _shown(_one_line([os.fsdecode(word) for word in words])) or None


def _lock(file: BinaryIO, until: float) -> None:
    """Raises OSError; with one of TAKEN if another process has it still at `until` (monotonic seconds)."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN or time.monotonic() >= until:
                raise
        time.sleep(POLL_S)
