from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.data.page_file import MAGIC, open_page_table, write_page_table
from distributed_training.data.pages import PageColumns, PageEntry, PageHeader, check_trust
from distributed_training.errors import ConfigError

FILE = {"name": "data/a.parquet", "num_bytes": 1000, "sha256": None, "codec": "SNAPPY", "optional": True}
HELD = {"file": 1, "row_group": 0, "offset": 4, "length": 10, "rows": 1, "text_bytes": 9, "digest": "ab" * 32}
DOCUMENT: dict[str, Any] = {
    "version": 2,
    "recipe": {"text": "a test", "page_bytes": None, "heldout_bytes": None, "num_pages": None},
    "dataset": {"repo": "org/name", "revision": "0" * 40},
    "files": [FILE | {"column": "text"}, FILE | {"column": "text", "name": "data/b.parquet"}],
    "heldout": [HELD],
}
PAGES = [
    (PageEntry(0, 0, 4, 100, 3, 700), bytes(32)),
    (PageEntry(0, 1, 104, 50, 3, 0), None),
    (PageEntry(1, 1, 14, 986, 1000, 5), b"\x01" * 32),
]


def header(**fields: Any) -> PageHeader:
    return PageHeader.model_validate_json(json.dumps(DOCUMENT | fields))


def written(path: Path, pages: list[Any] = PAGES) -> Path:
    write_page_table(path, header(), PageColumns.of(pages))
    return path


def test_pages_come_back_and_the_sha256_is_the_files(tmp_path: Path) -> None:
    table = open_page_table(written(tmp_path / "pages.bin"))
    assert [(table.entry(index), table.digest(index)) for index in range(3)] == PAGES
    assert (table.num_pages, table.missing_digests) == (3, 1)
    assert table.header == header()
    assert table.sha256 == hashlib.sha256((tmp_path / "pages.bin").read_bytes()).hexdigest()
    assert table.sha256 == open_page_table(written(tmp_path / "again.bin")).sha256
    for index in (-1, 3):
        with pytest.raises(IndexError):
            table.entry(index)


def test_the_bytes_are_frozen(tmp_path: Path) -> None:
    """Another numpy, pydantic or pyarrow must not change what the run manifest names."""
    data = written(tmp_path / "pages.bin").read_bytes()
    assert data[:8] == MAGIC
    size, pages, digests = struct.unpack("<III", data[8:20])
    assert (pages, digests) == (3, 2)
    assert json.loads(data[20 : 20 + size]) == DOCUMENT
    at = -(-(20 + size) // 8) * 8
    assert struct.unpack_from("<3Q", data, at) == (4, 104, 14)
    assert struct.unpack_from("<3I", data, at + 24) == (0, 0, 1)
    assert data[-66:] == b"\0\0" + bytes(32) + b"\x01" * 32
    assert hashlib.sha256(data).hexdigest() == "7dd75fc27f03ae334640320ed0307d40ce5c4e6d911273d3c7cb5affe69f2e5b"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(1, 40), st.booleans()), min_size=1))
def test_any_ordered_pages_come_back(tmp_path_factory: pytest.TempPathFactory, made: list[Any]) -> None:
    pages: list[tuple[PageEntry, bytes | None]] = []
    ends = {0: 0, 1: 20}  # the held-out set lies before
    for number, (file, gap, length, known) in enumerate(sorted(made, key=lambda item: item[0])):
        entry = PageEntry(file, number, ends[file] + gap, length, 1 + number, number)
        ends[file] = entry.offset + length
        pages.append((entry, number.to_bytes(32, "big") if known else None))
    file = FILE | {"column": "text", "num_bytes": 1 << 40}
    big = header(files=[file, file | {"name": "b"}])
    table = write_page_table(tmp_path_factory.mktemp("t") / "pages.bin", big, PageColumns.of(pages))
    assert [(table.entry(index), table.digest(index)) for index in range(len(pages))] == pages


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 1}, "version"),
        ({"extra": 1}, "extra"),
        ({"files": []}, "files: expected 1 to"),
        ({"files": [FILE | {"column": "text"}] * 2}, "twice"),
        ({"files": [FILE | {"column": "text", "name": "../outside"}] * 1}, "stay inside"),
        ({"files": [FILE | {"column": "text", "name": "/etc/hosts"}] * 1}, "stay inside"),
        ({"files": [FILE | {"column": "text", "name": "a//b"}] * 1}, "stay inside"),
        ({"files": [FILE | {"column": "text", "name": "a\\b"}] * 1}, "stay inside"),
        ({"files": [FILE | {"column": ""}] * 1}, "column"),
        ({"files": [FILE | {"column": "text", "codec": "LZO"}] * 1}, "codec"),
        ({"files": [FILE | {"column": "text", "sha256": "AB" * 32}] * 1}, "sha256"),
        ({"dataset": {"repo": "org/name", "revision": "main"}}, "commit of 40 hex digits"),
        ({"dataset": {"repo": "a/b/c", "revision": "0" * 40}}, "no name of a data set"),
        ({"heldout": []}, "heldout: expected"),
        ({"heldout": [HELD | {"file": 2}]}, "heldout.0"),
        ({"heldout": [HELD | {"offset": 995}]}, "heldout.0"),
        ({"heldout": [HELD | {"rows": 0}]}, "heldout.0"),
        ({"heldout": [HELD | {"digest": None}]}, "digest"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    data = written(tmp_path / "pages.bin").read_bytes()
    size = struct.unpack("<I", data[8:12])[0]
    columns = data[-(-(20 + size) // 8) * 8 :]
    text = json.dumps(DOCUMENT | fields, sort_keys=True, separators=(",", ":")).encode()
    prefix = data[:8] + struct.pack("<I", len(text)) + data[12:20] + text
    (tmp_path / "pages.bin").write_bytes(prefix + bytes(-len(prefix) % 8) + columns)
    with pytest.raises(ConfigError, match=reason) as caught:
        open_page_table(tmp_path / "pages.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([], "at least one page"),
        ([PageEntry(2, 0, 0, 1, 1, 0)], "page 0"),
        ([PageEntry(0, 0, 0, 0, 1, 0)], "page 0"),
        ([PageEntry(0, 0, 990, 11, 1, 0)], "page 0"),
        ([PageEntry(0, 0, (1 << 64) - 1, 1, 1, 0)], "page 0"),
        ([PageEntry(0, 0, 0, (1 << 32) - 1, 1, 0)], "page 0"),
        ([PageEntry(0, 0, 0, 1, 0, 0)], "page 0"),
        ([PageEntry(0, 0, 0, 1, 1, (1 << 32) - 1)], "page 0"),
        ([PageEntry(0, 0, 9, 1, 1, 0), PageEntry(0, 0, 4, 1, 1, 0)], "page 1: .*order"),
        ([PageEntry(0, 0, 4, 6, 1, 0), PageEntry(0, 0, 9, 1, 1, 0)], "page 1: .*order"),
        ([PageEntry(1, 0, 20, 1, 1, 0), PageEntry(0, 0, 4, 1, 1, 0)], "page 1: .*order"),
        ([PageEntry(1, 0, 13, 6, 1, 0)], "shares bytes"),
        ([PageEntry(1, 0, 0, 5, 1, 0)], "shares bytes"),
        ([PageEntry(1, 0, 0, 500, 1, 0)], "shares bytes"),
    ],
)
def test_bad_pages_are_refused(tmp_path: Path, pages: list[PageEntry], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        written(tmp_path / "pages.bin", [(page, bytes(32)) for page in pages])


def test_an_order_is_checked_across_pieces_of_many_pages(tmp_path: Path) -> None:
    count = (1 << 16) + 5
    narrow = {name: np.ones(count, np.uint32) for name in ("length", "rows")}
    zeros = {name: np.zeros(count, np.uint32) for name in ("file", "row_group", "text_bytes")}
    none = {"digest_pages": np.empty(0, np.uint32), "digests": np.empty((0, 32), np.uint8)}
    columns = PageColumns(offset=np.arange(count, dtype=np.uint64), **narrow, **zeros, **none)
    file = FILE | {"column": "text", "num_bytes": 1 << 20}
    wide = header(files=[file, file | {"name": "b"}])
    assert write_page_table(tmp_path / "pages.bin", wide, columns).missing_digests == count
    columns.offset[1 << 16] = 3
    with pytest.raises(ConfigError, match=f"page {1 << 16}: .*order"):
        write_page_table(tmp_path / "pages.bin", wide, columns)


def test_digests_are_of_pages_in_order_and_complete_without_a_data_set(tmp_path: Path) -> None:
    good = PageColumns.of(PAGES)
    for numbers in ([2, 0], [0, 0], [0, 3]):
        with pytest.raises(ConfigError, match="digests"):
            write_page_table(tmp_path / "a", header(), replace(good, digest_pages=np.array(numbers, np.uint32)))
    with pytest.raises(ConfigError, match="1 pages have no digest, so a data set"):
        write_page_table(tmp_path / "a", header(dataset=None), good)
    whole = PageColumns.of([(entry, bytes(32)) for entry, _ in PAGES])
    assert write_page_table(tmp_path / "a", header(dataset=None), whole).missing_digests == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:30],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"{" + data[1:],
        lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:],
        lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:],
        lambda data: data.replace(b'{"dataset"', b'{ "dataset"', 1),
        lambda data: data.replace(b'"version":2', b'"version": ', 1),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = written(tmp_path / "pages.bin")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError) as caught:
        open_page_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trust_is_what_the_run_says() -> None:
    check_trust(0, "digest")
    check_trust(5, "commit")
    with pytest.raises(ConfigError, match="lacks 5"):
        check_trust(5, "digest")
