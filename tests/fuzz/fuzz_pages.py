"""Pages as fuzz targets: the manifest that says where they lie, and the compressed chunks that come from strangers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_engine import ACCEPTED, Target

from distributed_training.data.chunks import TextColumn, decode, row_groups
from distributed_training.data.page_file import decode_page_table, encode_page_table
from distributed_training.data.pages import (
    Dataset,
    FileEntry,
    Heldout,
    PageColumns,
    PageEntry,
    PageHeader,
    Recipe,
)
from distributed_training.errors import DataUnavailable

TEXTS = ["one text", "another text " * 9, "", "caf\u00e9 \U0001f600", "another text " * 9] * 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {"use_dictionary": False, "compression": "none"},
    {"compression": "none"},
    {"use_dictionary": False, "compression": "snappy", "data_page_size": 100},
    {"compression": "zstd", "data_page_version": "2.0"},
)


def _written(options: dict[str, Any]) -> tuple[TextColumn, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, write_statistics=False, **options)
    data = sink.getvalue().to_pybytes()
    column = row_groups(pq.read_metadata(pa.BufferReader(data)), "text")
    return column, data[column.groups[0].offset : column.groups[0].offset + column.groups[0].length]


WRITTEN = tuple(_written(options) for options in OPTIONS)
FILE = FileEntry(name="a/b.parquet", num_bytes=500, sha256="0" * 64, codec="SNAPPY", optional=True, column="text")
HEADER = PageHeader(
    version=2,
    recipe=Recipe(text="made up", page_bytes=None, heldout_bytes=None, num_pages=3),
    dataset=Dataset(repo="org/name", revision="0" * 40),
    files=(FILE, FILE.model_copy(update={"name": "c.parquet"})),
    heldout=(Heldout(file=1, row_group=1, offset=400, length=9, rows=2, text_bytes=0, digest="1" * 64),),
)
ENTRIES = PageEntry(0, 0, 4, 90, 3, 0), PageEntry(0, 1, 94, 80, 3, 7), PageEntry(1, 0, 4, 9, 1, 0)
COLUMNS = PageColumns.of(zip(ENTRIES, (bytes(32), None, bytes(32)), strict=True))


def check_page_manifest(data: bytes) -> str:
    header, columns = decode_page_table(np.frombuffer(data, dtype=np.uint8))
    assert encode_page_table(header, columns) == data, "two encodings of one manifest were accepted"
    for file, offset, length in zip(columns.file, columns.offset, columns.length, strict=True):
        assert int(offset) + int(length) <= header.files[file].num_bytes, "a page beyond its file was accepted"
    return ACCEPTED


def check_page_chunk(data: bytes) -> str:
    """The first byte chooses how the file was written, and whether its bytes of text are known."""
    kind, body = (data[0] if data else 0), data[1:]
    column, _ = WRITTEN[kind % len(WRITTEN)]
    size = sum(len(text.encode()) for text in TEXTS) if kind & 128 else 0
    entry = PageEntry(0, 0, 0, len(body), len(TEXTS), size)
    texts = decode(body, entry, column.file_entry("a", 1 << 20, "text"), "it")
    assert len(texts) == len(TEXTS)
    assert sum(len(text.encode()) for text in texts) <= (size or max(1 << 20, 64 * len(body)))
    return ACCEPTED


PAGES = (
    Target("page_manifest", (encode_page_table(HEADER, COLUMNS),), check_page_manifest, (ValueError,), 200, 256 * 1024),
    Target("page_chunk", tuple(bytes([kind + high]) + chunk for high in (0, 128) for kind, (_, chunk) in
           enumerate(WRITTEN)), check_page_chunk, (DataUnavailable,), 400, 4 << 20),
)  # fmt: skip
