from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.chunks import decode, row_groups
from distributed_training.data.pages import FileEntry, PageEntry
from distributed_training.data.thrift import Reader
from distributed_training.errors import ConfigError, DataUnavailable

NAMES = ["text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count"]


def fineweb(texts: Sequence[str | None], text_type: pa.DataType, nullable: bool) -> pa.Table:
    """A table with FineWeb's nine columns; some of its other columns hold nulls."""
    count = len(texts)
    columns: dict[str, Any] = {name: [f"{name} {row}" for row in range(count)] for name in NAMES[1:7]}
    columns |= {"text": texts, "language_score": [0.9] * count, "token_count": list(range(count))}
    columns["url"] = [None] * count
    kinds = {"text": text_type, "language_score": pa.float64(), "token_count": pa.int64()}
    fields = [pa.field(name, kinds.get(name, pa.string()), nullable or name != "text") for name in NAMES]
    return pa.table(columns, schema=pa.schema(fields))


def write(
    path: Path, texts: Sequence[str | None], rows: int = 1000, **options: Any
) -> tuple[FileEntry, list[PageEntry]]:
    text_type, nullable = options.pop("text_type", pa.string()), options.pop("nullable", True)
    pq.write_table(fineweb(texts, text_type, nullable), path, row_group_size=rows, **options)
    column = row_groups(pq.read_metadata(path), "text")
    return column.file_entry(path.name, path.stat().st_size, "text"), list(column.groups)


def bytes_of(path: Path, entry: PageEntry) -> bytes:
    return path.read_bytes()[entry.offset : entry.offset + entry.length]


def words(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh \n\u00e9\u4e2d", k=draw.randint(0, 400))) for _ in range(count)]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "brotli", "none"])
@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"data_page_version": "2.0", "use_dictionary": False, "data_page_size": 2000},
        {"dictionary_pagesize_limit": 3000},  # begins with a dictionary, goes on without
        {"text_type": pa.large_string(), "write_page_checksum": True, "write_page_index": True},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_a_bare_chunk_gives_what_the_file_gives(
    tmp_path: Path, compression: str, nullable: bool, options: dict[str, Any]
) -> None:
    texts = words(130) + ["same"] * 70
    path = tmp_path / "a.parquet"
    file, entries = write(path, texts, rows=90, compression=compression, nullable=nullable, **options)
    assert file.codec == ("UNCOMPRESSED" if compression == "none" else compression.upper())
    assert file.optional == nullable
    assert len(entries) == 3
    for group, entry in enumerate(entries):
        expected = pq.ParquetFile(path).read_row_group(group).column("text").to_pylist()
        assert list(decode(bytes_of(path, entry), entry, file, "it")) == expected
        size = sum(len(text.encode()) for text in expected)
        assert list(decode(bytes_of(path, entry), entry._replace(text_bytes=size), file, "it")) == expected
        with pytest.raises(DataUnavailable, match=f"it cannot be decoded: .*expected.* {size - 1}"):
            decode(bytes_of(path, entry), entry._replace(text_bytes=size - 1), file, "it")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=30), st.booleans(), st.booleans())
def test_any_texts_come_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], nullable: bool, dictionary: bool
) -> None:
    path = tmp_path_factory.mktemp("c") / "a.parquet"
    texts = [text.encode(errors="ignore").decode() for text in texts]
    file, (entry,) = write(path, texts, nullable=nullable, use_dictionary=dictionary)
    assert list(decode(bytes_of(path, entry), entry, file, "it")) == texts


def test_wrong_rows_nulls_and_lengths_are_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file, (entry,) = write(path, words(50))
    data = bytes_of(path, entry)
    for rows in (49, 51):
        with pytest.raises(DataUnavailable, match=f"50 rows, expected {rows}"):
            decode(data, entry._replace(rows=rows), file, "it")
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(DataUnavailable, match="bytes, expected"):
            decode(wrong, entry, file, "it")
        with pytest.raises(DataUnavailable):
            decode(wrong, entry._replace(length=len(wrong)), file, "it")
    with pytest.raises(DataUnavailable):
        decode(data, entry, file.model_copy(update={"codec": "GZIP"}), "it")
    file, (entry,) = write(path, ["a", None, "b"])
    with pytest.raises(DataUnavailable, match="without a text"):
        decode(bytes_of(path, entry), entry, file, "it")


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_small_chunk_that_is_much_text_is_refused_before_it_is_made(tmp_path: Path, dictionary: bool) -> None:
    """A megabyte of text 4,000 times, in a few kilobytes."""
    path = tmp_path / "bomb.parquet"
    count = 4000 if dictionary else 64
    array = pa.array(["x" * 1_000_000]).dictionary_encode().take(pa.array([0] * count))
    options = {"use_dictionary": dictionary, "dictionary_pagesize_limit": 1 << 21, "store_schema": False}
    texts = array if dictionary else array.cast(pa.string())
    pq.write_table(pa.table({"text": texts}), path, row_group_size=count, compression="zstd", **options)
    column = row_groups(pq.read_metadata(path), "text")
    (entry,), file = column.groups, column.file_entry("bomb.parquet", path.stat().st_size, "text")
    assert entry.length < 200_000
    before = pa.total_allocated_bytes()
    for text_bytes in (0, 5_000):
        with pytest.raises(DataUnavailable, match=r"bytes .*expected"):
            decode(bytes_of(path, entry), entry._replace(text_bytes=text_bytes), file, "it")
    assert pa.total_allocated_bytes() - before < 1 << 20


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 255), st.booleans())
def test_damaged_bytes_are_unavailable_or_other_texts(where: int, flip: int, dictionary: bool) -> None:
    data, entry, file = _sample(dictionary)
    damaged = bytearray(data)
    damaged[where % len(data)] ^= flip
    try:
        texts = decode(bytes(damaged), entry, file, "it")
    except DataUnavailable as error:
        assert str(error).startswith("it cannot be decoded: ")
        assert "\n" not in str(error)
    else:
        assert len(texts) == entry.rows  # whether they are the right ones is the digest's to say


_SAMPLES: dict[bool, tuple[bytes, PageEntry, FileEntry]] = {}


def _sample(dictionary: bool) -> tuple[bytes, PageEntry, FileEntry]:
    if dictionary not in _SAMPLES:
        sink = pa.BufferOutputStream()
        pq.write_table(fineweb(words(20), pa.string(), True), sink, use_dictionary=dictionary, data_page_size=1000)
        data = sink.getvalue().to_pybytes()
        column = row_groups(pq.read_metadata(pa.BufferReader(data)), "text")
        entry = column.groups[0]
        chunk = data[entry.offset : entry.offset + entry.length]
        _SAMPLES[dictionary] = chunk, entry, column.file_entry("a", len(data), "text")
    return _SAMPLES[dictionary]


@given(st.binary(max_size=200))
def test_foreign_thrift_is_read_or_refused(data: bytes) -> None:
    reader = Reader(memoryview(data))
    try:
        reader.struct()
    except ValueError:
        pass
    else:
        assert reader.at <= len(data)


def test_many_fields_take_little_memory() -> None:
    booleans = memoryview(b"\x11" * 2_000_000 + b"\0")
    nested = memoryview((b"\x1c" + b"\x11" * 100 + b"\0") * 20_000 + b"\0")
    for data in (booleans, nested):
        tracemalloc.start()
        with pytest.raises(ValueError, match="more than 1000 fields"):
            Reader(data).struct()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
    reader = Reader(memoryview((b"\x15\x02" * 600 + b"\0") * 2))
    assert reader.struct() == reader.struct() == dict.fromkeys(range(1, 601), 1)


def test_columns_that_are_no_text_are_named(tmp_path: Path) -> None:
    write(path := tmp_path / "a.parquet", words(3))
    metadata = pq.read_metadata(path)
    with pytest.raises(ConfigError, match="no column 'body'; expected one of text, id, dump"):
        row_groups(metadata, "body")
    with pytest.raises(ConfigError, match="'token_count' is INT64"):
        row_groups(metadata, "token_count")
    pq.write_table(pa.table({"a": [["x"]], "b": [{"c": "y"}]}), path)
    for name in ("a.list.element", "b.c"):
        with pytest.raises(ConfigError, match="expected one string a row"):
            row_groups(pq.read_metadata(path), name)
    pq.write_table(pa.table({"text": ["x"]}), path, compression="lz4")
    with pytest.raises(ConfigError, match="LZ4"):
        row_groups(pq.read_metadata(path), "text")
