"""Files that the disk did not take: kept in memory until it does, so that a full disk costs a node no round."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from distributed_training.files import write_whole
from distributed_training.ongoing import Ongoing

log = logging.getLogger(__name__)

BUDGET = 512 << 20  # bytes; beyond it the oldest go, which others hold too
# A thread that nobody waits for any more may still write the same slice.
_write = partial(write_whole, shared=True)


class Overflow:
    """Path -> bytes, oldest first. `on_trouble` is told once whenever the disk begins to refuse. For any thread."""

    def __init__(self, budget: int = BUDGET, write: Callable[..., None] = _write) -> None:
        self.budget, self._write_whole, self._files = budget, write, dict[Path, bytes]()
        self._lock = threading.Lock()
        self._trouble = Ongoing(log, "the disk takes no files", "the disk takes files again", logging.ERROR)
        self.on_trouble: Callable[[str], None] = lambda detail: None

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path) -> bytes | None:
        return self._files.get(path)

    def piece(self, path: Path, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on, from memory or from the disk. Raises OSError."""
        kept = self.get(path)
        if kept is not None:
            return kept[start : start + size]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def write(self, path: Path, *parts: bytes | memoryview) -> None:
        """To disk, whole or not at all; else into memory. Raises OSError for more than the whole budget."""
        try:
            self._write_whole(path, *parts)
        except OSError as error:
            if sum(map(len, parts)) > self.budget:
                raise
            self._keep(path, b"".join(parts))
            detail = f"cannot write {path}: {error.strerror}; it is kept in memory"
            if self._trouble.begin(detail):
                self.on_trouble(detail)
        else:
            with self._lock:
                self._files.pop(path, None)
            if not self._files:
                self._trouble.end()

    def retry(self) -> None:
        """Write what is still wanted, as far as there is room."""
        with self._lock:
            waiting = list(self._files.items())
        for path, data in waiting:
            try:
                self._write_whole(path, data)
            except OSError:
                return
            with self._lock:
                self._files.pop(path, None)
        self._trouble.end()

    def forget(self, folder: Path, pattern: str = "*") -> None:
        """Nobody asks for the files of this folder, of such names, any more."""
        with self._lock:
            for path in [p for p in self._files if p.parent == folder and p.match(pattern)]:
                del self._files[path]

    def keep_only(self, folder: Path, names: Collection[str]) -> None:
        """Of this folder nobody asks for any others."""
        with self._lock:
            for path in [p for p in self._files if p.parent == folder and p.name not in names]:
                del self._files[path]

    def folders(self) -> set[Path]:
        with self._lock:
            return {path.parent for path in self._files}

    def _keep(self, path: Path, data: bytes) -> None:
        with self._lock:
            self._files.pop(path, None)
            self._files[path] = data
            while sum(map(len, self._files.values())) > self.budget:
                del self._files[next(iter(self._files))]
