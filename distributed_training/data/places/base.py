"""Where the bytes of a data set's files come from: a small seam below the page sources."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

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


class Directory:
    """Files on the local disk."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory

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
