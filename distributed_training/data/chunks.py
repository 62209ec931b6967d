"""Text columns of parquet files by byte range: where they lie in a file, and back to texts without the file.

pyarrow wants a footer, so a bare chunk gets a minimal one of its own. Chunks are foreign bytes: what they say of their
size is bounded before anything is decompressed.
"""

from __future__ import annotations

from typing import NamedTuple, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed_training.data.pages import MAX_CHUNK_BYTES, Codec, FileEntry, PageEntry
from distributed_training.data.thrift import BINARY, I32, I64, LIST, STRUCT, Reader, binary, integer, listed, struct
from distributed_training.errors import ConfigError, DataUnavailable, said

_MAGIC = b"PAR1"
_CODECS: dict[Codec, int] = {"UNCOMPRESSED": 0, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6}
_BYTE_ARRAY, _UTF8, _PLAIN = 6, 0, 0
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages inside a chunk
_MAX_INNER_PAGES = 1 << 14
_ROW_BYTES = 16  # more than a row's length, levels and index take beside its text
_SLACK = 1 << 16
_MAX_RATIO = 64  # of compression, where nobody said how much text there is


class TextColumn(NamedTuple):
    """One column of one parquet file."""

    codec: Codec
    optional: bool
    groups: tuple[PageEntry, ...]  # one for each row group, of file 0 and without their bytes of text

    def file_entry(self, name: str, num_bytes: int, column: str, sha256: str | None = None) -> FileEntry:
        """The entry of a page manifest for this file."""
        return FileEntry(
            name=name, num_bytes=num_bytes, sha256=sha256, codec=self.codec, optional=self.optional, column=column
        )


def row_groups(metadata: pq.FileMetaData, column: str) -> TextColumn:
    """Where the text column lies in each row group. Raises ConfigError when it is none, or cannot be read by itself."""
    schema = metadata.schema
    numbers = [number for number in range(len(schema)) if schema.column(number).path == column]
    if not numbers:
        paths = ", ".join(schema.column(number).path for number in range(min(len(schema), 20)))
        raise ConfigError(f"no column {column!r}; expected one of {paths}")
    kind = schema.column(numbers[0])
    if kind.physical_type != "BYTE_ARRAY" or kind.max_repetition_level or kind.max_definition_level > 1:
        raise ConfigError(f"column {column!r} is {kind.physical_type}, expected one string a row")
    groups: list[PageEntry] = []
    codecs: set[str] = set()
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(numbers[0])
        if chunk.file_path:
            raise ConfigError(f"column {column!r} lies in another file, {chunk.file_path[:80]}")
        first = chunk.dictionary_page_offset or chunk.data_page_offset
        offset = min(first, chunk.data_page_offset)
        rows = metadata.row_group(group).num_rows
        groups.append(PageEntry(0, group, offset, chunk.total_compressed_size, rows, 0))
        codecs.add(chunk.compression)
    codec = codecs.pop() if codecs else "UNCOMPRESSED"
    if codecs or codec not in get_args(Codec):
        raise ConfigError(f"column {column!r} is compressed with {codec} {' '.join(codecs)}, expected one known codec")
    return TextColumn(cast(Codec, codec), kind.max_definition_level == 1, tuple(groups))


def most_text(length: int) -> int:
    """Bytes of text that a chunk of `length` bytes may hold where nobody has counted them."""
    return min(max(_MAX_RATIO * length, 1 << 20), MAX_CHUNK_BYTES)


def decode(data: bytes, entry: PageEntry, file: FileEntry, what: str) -> tuple[str, ...]:
    """The texts of one column chunk, in order. Memory is bounded by what the page manifest says, or 64 times `data`.

    Raises DataUnavailable, beginning with `what`, for bytes that are not `entry.rows` texts of `entry.text_bytes`.
    """
    try:
        return _decode(data, entry, file)
    except (OSError, ValueError, IndexError, pa.ArrowException) as error:
        raise DataUnavailable(f"{what} cannot be decoded: {said(error)[:200]}") from error


def _decode(data: bytes, entry: PageEntry, file: FileEntry) -> tuple[str, ...]:
    if len(data) != entry.length:
        raise ValueError(f"{len(data)} bytes, expected {entry.length}")
    inner = _inner_pages(memoryview(data))
    limit = entry.text_bytes or most_text(len(data))
    size = sum(page.uncompressed for page in inner)
    if size > limit + _ROW_BYTES * entry.rows + _SLACK:
        raise ValueError(f"{size} bytes when decompressed, expected at most {limit}")
    rows = sum(page.rows for page in inner)
    if rows != entry.rows:
        raise ValueError(f"{rows} rows, expected {entry.rows}")
    parts = [_MAGIC, data, footer := _footer(entry, file, size, inner), len(footer).to_bytes(4, "little"), _MAGIC]
    # A dictionary lets few bytes be many texts: then what it makes is counted before it is made.
    compact = ["text"] if inner[0].kind == _DICTIONARY else None
    with pq.ParquetFile(pa.BufferReader(b"".join(parts)), read_dictionary=compact) as chunk:
        column = chunk.read_row_group(0, use_threads=False).column("text")
    if column.null_count or len(column) != entry.rows:
        raise ValueError("a row without a text")
    column.validate(full=True)  # pyarrow trusts the indices into a dictionary otherwise
    text_bytes = sum(_text_bytes(piece) for piece in column.chunks)
    if text_bytes > limit or entry.text_bytes not in (0, text_bytes):
        raise ValueError(f"{text_bytes} bytes of text, expected {entry.text_bytes or f'at most {limit}'}")
    return tuple(column.cast(pa.large_string()).to_pylist())


def _text_bytes(texts: pa.Array) -> int:
    if isinstance(texts, pa.DictionaryArray):
        return int(_lengths(texts.dictionary)[texts.indices.to_numpy()].sum())
    return int(_lengths(texts).sum())


def _lengths(texts: pa.Array) -> NDArray[np.int64]:
    """UTF-8 bytes of each text."""
    ends = texts.buffers()[1]
    if ends is None:
        return np.zeros(len(texts), dtype=np.int64)
    return np.diff(np.frombuffer(ends, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64))


class _InnerPage(NamedTuple):
    kind: int
    at: int
    uncompressed: int
    rows: int


def _inner_pages(data: memoryview) -> list[_InnerPage]:
    """What the headers of the parquet pages inside a chunk say. Raises ValueError."""
    pages: list[_InnerPage] = []
    reader = Reader(data)
    while reader.at < len(data):
        at = reader.at
        header = reader.struct()
        kind, uncompressed, compressed = (header.get(field) for field in (1, 2, 3))
        known = kind in (_DATA, _DATA_V2) or (kind == _DICTIONARY and not pages)
        if not known or kind is None or not isinstance(uncompressed, int) or not isinstance(compressed, int):
            raise ValueError(f"no page header at byte {at}")
        reader.at += compressed
        detail = header.get(5 if kind == _DATA else 8)
        rows = 0 if kind == _DICTIONARY else detail.get(1) if isinstance(detail, dict) else None
        if not isinstance(rows, int) or min(uncompressed, compressed, rows) < 0 or reader.at > len(data):
            raise ValueError(f"the page at byte {at} goes beyond the chunk, or says nonsense")
        pages.append(_InnerPage(kind, at, uncompressed, rows))
        if len(pages) > _MAX_INNER_PAGES:
            raise ValueError(f"more than {_MAX_INNER_PAGES} pages in one chunk")
    if not pages:
        raise ValueError("no pages")
    return pages


def _footer(entry: PageEntry, file: FileEntry, size: int, inner: list[_InnerPage]) -> bytes:
    """FileMetaData of a file that is this chunk alone; field numbers are those of parquet.thrift."""
    start = len(_MAGIC)
    data_pages = [page for page in inner if page.kind != _DICTIONARY]
    column = [
        (1, I32, integer(_BYTE_ARRAY)),
        (2, LIST, listed(I32, [integer(_PLAIN)])),
        (3, LIST, listed(BINARY, [binary(b"text")])),
        (4, I32, integer(_CODECS[file.codec])),
        (5, I64, integer(entry.rows)),
        (6, I64, integer(size)),
        (7, I64, integer(entry.length)),
        (9, I64, integer(start + data_pages[0].at if data_pages else start)),
    ]
    if inner[0].kind == _DICTIONARY:
        column.append((11, I64, integer(start)))
    chunk = struct([(2, I64, integer(start)), (3, STRUCT, struct(column))])
    group = struct([(1, LIST, listed(STRUCT, [chunk])), (2, I64, integer(size)), (3, I64, integer(entry.rows))])
    root = struct([(4, BINARY, binary(b"schema")), (5, I32, integer(1))])
    leaf = [(1, I32, integer(_BYTE_ARRAY)), (3, I32, integer(int(file.optional))), (4, BINARY, binary(b"text"))]
    schema = listed(STRUCT, [root, struct([*leaf, (6, I32, integer(_UTF8))])])
    fields = [(1, I32, integer(2)), (2, LIST, schema), (3, I64, integer(entry.rows))]
    return struct([*fields, (4, LIST, listed(STRUCT, [group]))])
