"""Files of a checkpoint on this machine against training_state.json."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.description import STATE_FILE, Description, FileFacts, parse_description
from distributed_training.errors import LocalFault, WireError


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; no link is followed. Raises WireError, LocalFault."""
    size = _size(path)
    if size > limit:
        raise WireError(f"{path.name}: {size} bytes, at most {limit} expected")
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from None


def described(data: bytes, ref: CheckpointRef) -> Description:
    """training_state.json of `ref`. Raises WireError unless it has this sha256 and says what it may, of this round."""
    if hashlib.sha256(data).digest() != ref.digest:
        raise WireError(f"checkpoint {ref.location}: {STATE_FILE} has another sha256 than {ref.digest.hex()[:16]}...")
    found = parse_description(data)
    if found.round != ref.round:
        raise WireError(f"checkpoint {ref.location}: it is of round {found.round}, expected {ref.round}")
    return found


def facts_of(path: Path) -> FileFacts:
    """Sha256 and size of a regular file. Raises WireError for anything else under this name, LocalFault."""
    size = _size(path)
    try:
        with path.open("rb") as file:
            return FileFacts(hashlib.file_digest(file, "sha256").hexdigest(), size)
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from None


def check_files(folder: Path, description: Description, names: Collection[str]) -> None:
    """Raises WireError unless `folder` has all of these files as they are described."""
    for name in names:
        expected = description.files.get(name)
        if expected is None:
            raise WireError(f"checkpoint {folder}: {STATE_FILE} does not name {name}")
        if _size(folder / name) != expected.num_bytes:
            raise WireError(f"checkpoint {folder}: {name} does not have the size of {STATE_FILE}")
        if facts_of(folder / name) != expected:
            raise WireError(f"checkpoint {folder}: {name} does not have the sha256 of {STATE_FILE}")


def check_sizes(folder: Path, description: Description) -> None:
    """Before it goes out. Raises LocalFault for a file that is missing, WireError for one of another size."""
    for name, expected in description.files.items():
        if _size(folder / name) != expected.num_bytes:
            raise WireError(f"checkpoint {folder}: {name} does not have the size of {STATE_FILE}")


def check_listing(where: str, there: Collection[str], description: Description) -> None:
    """Raises WireError unless the checkpoint is exactly the files that training_state.json names, and itself."""
    expected = {*description.files, STATE_FILE}
    extra, missing = sorted(set(there) - expected), sorted(expected - set(there))
    if extra:
        raise WireError(f"checkpoint {where}: {extra[0][:80]!r} is there, which {STATE_FILE} does not name")
    if missing:
        raise WireError(f"checkpoint {where}: {missing[0]} is missing")


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError as error:
        raise LocalFault(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise WireError(f"{path} is no regular file")
    return found.st_size
