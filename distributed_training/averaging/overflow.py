"""Files that the disk did not take: kept in memory until it does, so that a full disk costs a node no round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from distributed_training.files import write_whole
from distributed_training.ongoing import Ongoing

log = logging.getLogger(__name__)

BUDGET = 512 << 20  # bytes; beyond it the oldest go, which others hold too


class Overflow:
    """Path -> bytes, oldest first. `on_trouble` is told once whenever the disk begins to refuse."""

    def __init__(self, budget: int = BUDGET, write: Callable[[Path, bytes], None] = write_whole) -> None:
        self._budget, self._write_whole, self._files = budget, write, dict[Path, bytes]()
        self._trouble = Ongoing(log, "the disk takes no files", "the disk takes files again", logging.ERROR)
        self.on_trouble: Callable[[str], None] = lambda detail: None

    def __len__(self) -> int:
        return len(self._files)

    def get(self, path: Path) -> bytes | None:
        return self._files.get(path)

    def write(self, path: Path, data: bytes) -> None:
        """To disk, whole or not at all; else into memory. Raises OSError for more than the whole budget."""
        try:
            self._write_whole(path, data)
        except OSError as error:
            if len(data) > self._budget:
                raise
            self._keep(path, data)
            detail = f"cannot write {path}: {error.strerror}; it is kept in memory"
            if self._trouble.begin(detail):
                self.on_trouble(detail)
        else:
            self._files.pop(path, None)
            if not self._files:
                self._trouble.end()

    def retry(self) -> None:
        """Write what is still wanted, as far as there is room."""
        for path, data in list(self._files.items()):
            try:
                self._write_whole(path, data)
            except OSError:
                return
            self._files.pop(path, None)
        self._trouble.end()

    def forget(self, folder: Path) -> None:
        """Nobody asks for the files of this folder any more."""
        for path in [p for p in self._files if p.parent == folder]:
            self._files.pop(path, None)

    def folders(self) -> set[Path]:
        return {path.parent for path in self._files}

    def _keep(self, path: Path, data: bytes) -> None:
        self._files.pop(path, None)
        self._files[path] = data
        while sum(map(len, self._files.values())) > self._budget:
            self._files.pop(next(iter(self._files)))
