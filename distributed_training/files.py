"""Files that are written whole or not at all, and files that grow by whole lines."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import get_ident


def write_whole(path: Path, *parts: bytes | memoryview, shared: bool = False) -> None:
    """The file has these bytes or what it had before; nothing half-written stays. Raises OSError that names the file.

    `shared`: others may write the same file at this moment. One of them wins.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.part" if shared else f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.writelines(parts)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):  # it is the first trouble that is told
            partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise


class Lines:
    """A file that is appended to at once, so that others can follow it and a crash of this process loses nothing of it.

    Half a line that a crash of the machine left is ended first. Raises OSError where the disk takes no more: each line
    is there whole or not at all.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.size = os.lseek(self._file, 0, os.SEEK_END)
        half = self.size and os.pread(self._file, 1, self.size - 1) != b"\n"
        with suppress(OSError):  # a full disk is no reason not to start
            os.write(self._file, b"\n" if half else b"")

    def write(self, line: str) -> None:
        """line: without its end."""
        data = (line + "\n").encode("utf-8", "backslashreplace")
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, end)
            raise
        self.size = end + len(data)

    def is_at(self, path: Path) -> bool:
        """Is it still the file of that name, or was it moved away?"""
        try:
            return os.path.samestat(os.fstat(self._file), path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._file)
