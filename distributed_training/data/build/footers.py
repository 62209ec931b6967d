"""Parquet footers of the files of a data set: each is read once, and what it said is kept for the next try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from distributed_training.data.build.hub import HubDataset, HubFile
from distributed_training.data.build.parallel import in_order
from distributed_training.data.chunks import most_text, row_groups
from distributed_training.data.pages import MAX_CHUNK_BYTES, MAX_ROWS, Codec, FileEntry
from distributed_training.errors import ConfigError, DataUnavailable, said
from distributed_training.files import write_whole

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 64 << 20
_TAIL = 8  # u32 length of the footer, magic
_FIRST_GUESS = 64 << 10
_ROOM = 1.02  # of the last footer: files of one data set have footers of about one size


class Group(NamedTuple):
    """The text column of one row group."""

    offset: int
    length: int
    rows: int
    text_bytes: int  # of its pages before compression: a little more than the text
    nulls: int  # rows without a text, where the file says so

    @property
    def usable(self) -> bool:
        whole = 0 < self.length <= MAX_CHUNK_BYTES and 0 < self.rows <= MAX_ROWS
        return whole and self.text_bytes <= most_text(self.length) and not self.nulls


class Footer(BaseModel):
    """What is needed of one footer, and of which file it was."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    num_bytes: int
    sha256: str | None
    column: str
    codec: Codec
    optional: bool
    footer_bytes: int
    groups: tuple[Group, ...]

    @property
    def entry(self) -> FileEntry:
        return FileEntry(
            name=self.name,
            num_bytes=self.num_bytes,
            sha256=self.sha256,
            codec=self.codec,
            optional=self.optional,
            column=self.column,
        )


class FooterReader:
    """Reads footers of `dataset` into `folder`, or takes them from there. `fetched` counts the bytes that came."""

    def __init__(self, dataset: HubDataset, column: str, folder: Path, tick: Callable[[int], None]) -> None:
        """`tick(bytes)` is called when a file is done."""
        self._dataset, self._column, self._folder, self._tick = dataset, column, folder, tick
        self._guess = _FIRST_GUESS
        self.fetched = 0

    def read(self, files: Sequence[HubFile], threads: int) -> Iterator[Footer]:
        """In the order of the files. Raises ConfigError for a file that has no such text column, DataUnavailable."""
        first = [self._footer((0, files[0]))]  # alone: its size is the guess for the others
        yield from first
        yield from in_order(self._footer, list(enumerate(files))[1:], threads)

    def _footer(self, numbered: tuple[int, HubFile]) -> Footer:
        number, file = numbered
        path = self._folder / f"footer-{number:05d}.json"
        footer = _kept(path, file, self._column)
        if footer is None:
            footer, fetched = read_footer(self._dataset, file, self._column, self._guess)
            self.fetched += fetched
            write_whole(path, footer.model_dump_json().encode())
            self._tick(fetched)
        else:
            self._tick(0)
        self._guess = int(footer.footer_bytes * _ROOM) + _TAIL
        return footer


def read_footer(dataset: HubDataset, file: HubFile, column: str, guess: int) -> tuple[Footer, int]:
    """The footer of a remote file in one request of `guess` bytes, or two; and how many bytes came."""
    size = min(max(guess, _TAIL), file.num_bytes)
    tail = dataset.read(file.name, file.num_bytes - size, size) if size >= _TAIL else b""
    if tail[-len(MAGIC) :] != MAGIC:
        raise ConfigError(f"{dataset.repo} {file.name}: expected a parquet file")
    length = int.from_bytes(tail[-_TAIL : -len(MAGIC)], "little") + _TAIL
    if length > min(file.num_bytes, MAX_FOOTER_BYTES):
        raise ConfigError(f"{dataset.repo} {file.name}: a footer of {length} bytes cannot be")
    if length > size:
        tail = dataset.read(file.name, file.num_bytes - length, length - size) + tail
    return _parse(dataset, file, column, tail[-length:]), max(length, size)


def _parse(dataset: HubDataset, file: HubFile, column: str, footer: bytes) -> Footer:
    try:
        metadata = pq.read_metadata(pa.BufferReader(MAGIC + footer))
        found = row_groups(metadata, column)
        groups = tuple(_groups(metadata, column))
    except ConfigError as error:
        raise ConfigError(f"--column: {file.name}: {error}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataUnavailable(f"{dataset.repo} {file.name}: its footer cannot be read: {said(error)[:100]}") from None
    return Footer(
        name=file.name,
        num_bytes=file.num_bytes,
        sha256=file.sha256,
        column=column,
        codec=found.codec,
        optional=found.optional,
        footer_bytes=len(footer),
        groups=tuple(
            Group(entry.offset, entry.length, entry.rows, *more)
            for entry, more in zip(found.groups, groups, strict=True)
        ),
    )


def _groups(metadata: pq.FileMetaData, column: str) -> Iterator[tuple[int, int]]:
    """Bytes before compression and rows without a text, for each row group."""
    schema = metadata.schema
    number = next(number for number in range(len(schema)) if schema.column(number).path == column)
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(number)
        statistics = chunk.statistics if chunk.is_stats_set else None
        nulls = statistics.null_count if statistics is not None and statistics.has_null_count else 0
        yield chunk.total_uncompressed_size, nulls


def _kept(path: Path, file: HubFile, column: str) -> Footer | None:
    """What an earlier try read of the same file."""
    try:
        footer = Footer.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    same = (footer.name, footer.num_bytes, footer.sha256, footer.column) == (*_of(file), column)
    return footer if same else None


def _of(file: HubFile) -> tuple[str, int, str | None]:
    return file.name, file.num_bytes, file.sha256
