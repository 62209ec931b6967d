"""Where the bytes of a data set's files come from: a small seam below the page sources."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Protocol

from distributed_training.data.pages import Dataset, FileEntry
from distributed_training.errors import DataUnavailable


class Place(Protocol):
    """Byte ranges of files, by the names of the page manifest. Blocking, bounded in time, thread-safe."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def read(self, file_name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, whether or not they are the right ones. Raises DataUnavailable."""
        ...

    def forget(self, file_name: str) -> None:
        """What it gave of this file was wrong: whatever it remembers of the way there is of no use."""
        ...

    def vouches(self, file: FileEntry, dataset: Dataset | None) -> bool:
        """Is its file certainly the one of `dataset`, so that a page needs no digest? May read the whole file."""
        ...


class Directory:
    """Files on the local disk."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[tuple[int, int], str]] = {}  # of files: (bytes, time of change), sha256

    def read(self, file_name: str, offset: int, length: int) -> bytes:
        path = self._directory / file_name
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise DataUnavailable(f"cannot read {path}: {error.strerror or error}") from error
        if len(data) != length:
            raise DataUnavailable(f"{path} ends at byte {offset + len(data)}, expected {offset + length}")
        return data

    def forget(self, file_name: str) -> None:
        """Nothing is remembered."""

    def vouches(self, file: FileEntry, dataset: Dataset | None) -> bool:
        """By the sha256 of the whole file, which is read once for that, and again when it has changed."""
        path = self._directory / file.name
        try:
            with self._lock:
                facts = path.stat()
                if facts.st_size != file.num_bytes or file.sha256 is None:
                    return False
                stamp = facts.st_size, facts.st_mtime_ns
                known = self._sums.get(file.name)
                if known is None or known[0] != stamp:
                    with path.open("rb") as opened:
                        known = stamp, hashlib.file_digest(opened, "sha256").hexdigest()
                    self._sums[file.name] = known
        except OSError:
            return False
        return known[1] == file.sha256
