"""Content digests of pages, read one by one and kept in a log: a read that was stopped goes on where it was."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distributed_training.data.build.hub import HubDataset
from distributed_training.data.build.parallel import in_order
from distributed_training.data.chunks import decode
from distributed_training.data.pages import FileEntry, PageEntry, page_digest
from distributed_training.errors import DataUnavailable

_RECORD = struct.Struct("<IIQII32s")  # file, row group, offset, length, bytes of text, digest


class Digested(NamedTuple):
    text_bytes: int
    digest: bytes


class DigestLog:
    """What pages hold, by (file, row group, offset, length), in one file of fixed records that only grows."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._known: dict[tuple[int, int, int, int], Digested] = {}
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        whole = len(data) - len(data) % _RECORD.size
        for *key, text_bytes, digest in _RECORD.iter_unpack(data[:whole]):
            self._known[tuple(key)] = Digested(text_bytes, digest)
        self._file = path.open("ab")
        self._file.truncate(whole)  # a record that a kill cut is read again

    def get(self, entry: PageEntry) -> Digested | None:
        return self._known.get(entry[:4])

    def add(self, entry: PageEntry, found: Digested) -> None:
        self._known[entry[:4]] = found
        self._file.write(_RECORD.pack(*entry[:4], *found))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> DigestLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_digests(
    dataset: HubDataset,
    files: Sequence[FileEntry],
    pages: Sequence[PageEntry],
    log: DigestLog,
    threads: int,
    tick: Callable[[int], None],
) -> Iterator[Digested | None]:
    """Of each page in order: from the log, or by reading the page; None: it cannot be decoded, so it is none.
    `tick(bytes)` after each. Raises DataUnavailable when a page cannot be read.
    """

    def read(entry: PageEntry) -> tuple[PageEntry, Digested | None, int]:
        known = log.get(entry)
        if known is not None:
            return entry, known, 0
        file = files[entry.file]
        what = f"{file.name}, row group {entry.row_group}"
        data = dataset.read(file.name, entry.offset, entry.length)
        try:
            documents = decode(data, entry, file, what)
        except DataUnavailable:
            again = dataset.read(file.name, entry.offset, entry.length)
            if again == data:  # not the line, but what lies there: nulls that the footer is silent about, for example
                return entry, None, len(data)
            data, documents = again, decode(again, entry, file, what)
        return entry, Digested(sum(len(text.encode()) for text in documents), page_digest(documents)), len(data)

    for entry, found, fetched in in_order(read, pages, threads):
        if found is not None and log.get(entry) is None:
            log.add(entry, found)
        tick(fetched)
        yield found
