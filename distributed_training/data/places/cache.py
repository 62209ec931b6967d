"""Pages kept on disk: compressed chunks as they were fetched, bounded in bytes, for all processes of a machine."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from distributed_training.files import write_whole

HELDOUT = "heldout-"  # how keys of the held-out set begin
_SUM_BYTES = 32
log = logging.getLogger(__name__)


class ChunkCache:
    """Chunks of one page manifest, below `directory`. Thread-safe; several processes may share the directory.

    At most `max_bytes` and a sixteenth of it for each process: then the entries used longest ago go, the held-out set
    last. An entry that was cut or changed is dropped. A disk that cannot be written is no error: it is said once.
    """

    def __init__(self, directory: Path, pages_sha256: str, max_bytes: int) -> None:
        self._root, self._max_bytes = directory, max_bytes
        self._own = directory / pages_sha256[:32]
        self._lock = threading.Lock()
        self._unseen = max_bytes  # written since the directory was last looked at: the first write looks
        self._complained = False

    def get(self, key: str) -> bytes | None:
        """The chunk; None if it is not there, or not what was put there."""
        path = self._own / key
        try:
            entry = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # another user's, or on a disk that is only read: still what was put there
            os.utime(path)
        data = entry[_SUM_BYTES:]
        if blake3(data).digest() == entry[:_SUM_BYTES]:
            return data
        self.drop(key)
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep a chunk, if it can be kept."""
        size = len(data) + _SUM_BYTES
        if size > self._max_bytes:
            return
        try:
            write_whole(self._own / key, blake3(data).digest() + data, shared=True)
            with self._lock:
                self._unseen += size
                if self._unseen * 16 >= self._max_bytes:
                    self._unseen = 0
                    _shrink(self._root, self._max_bytes)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("pages are not cached in %s: %s", self._own, error.strerror or error)

    def drop(self, key: str) -> None:
        with suppress(OSError):  # it will be dropped again when it is read again
            (self._own / key).unlink(missing_ok=True)

    def empty(self) -> bool:
        """Is there nothing of this manifest?"""
        try:
            return not any(self._own.iterdir())
        except OSError:
            return True


def _shrink(root: Path, max_bytes: int) -> None:
    """Remove files that were used longest ago, leftovers of killed processes included, until `max_bytes` are left."""
    found: list[tuple[bool, int, int, str]] = []
    for folder in (entry for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)):
        for entry in (entry for entry in os.scandir(folder.path) if entry.is_file(follow_symlinks=False)):
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # another process removed it
            # Read once at the start of a node, so always the oldest, and without it there is no evaluation.
            last = entry.name.startswith(HELDOUT) and not entry.name.endswith(".part")
            found.append((last, facts.st_mtime_ns, facts.st_size, entry.path))
    total = sum(size for _, _, size, _ in found)
    for _, _, size, path in sorted(found):
        if total <= max_bytes:
            break
        Path(path).unlink(missing_ok=True)
        total -= size
