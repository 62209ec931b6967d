"""Rows of files on this machine, in the forms that other programs write: pages, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed_training.data.build.rewrite import Choices, rewrite
from distributed_training.data.build.source import open_local
from distributed_training.data.local import LocalPages
from distributed_training.errors import ConfigError

TEXTS = [f"document {number} of caf\u00e9 and more\n" * 5 for number in range(60)]
CHOICES = Choices("text", None, page_bytes=1000, num_pages=None, heldout_bytes=1000)
BYTES = [text.encode() for text in TEXTS]
LATIN = [text.encode("latin-1") for text in TEXTS]


def build(folder: Path, kind: str) -> tuple[list[str], str | None]:
    """The documents, sorted, and what was said of rows that were left out."""
    made = rewrite(folder / "pages", open_local(kind, str(folder / "data.*")), CHOICES)
    pages = LocalPages(folder / "pages")
    found = [text for index in range(pages.num_pages) for text in pages.fetch(index).documents]
    return sorted([*found, *pages.heldout()]), made.left_out


def write(folder: Path, column: pa.Array | pa.ChunkedArray, name: str = "text") -> None:
    pq.write_table(pa.table({name: column, "number": pa.array(range(len(column)))}), folder / "data.parquet")


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).cast(pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()).dictionary_encode(),
        pa.array(BYTES, pa.binary()),
        pa.array(BYTES, pa.large_binary()),
    ],
    ids=lambda column: str(column.type)[:24],
)
def test_a_column_that_holds_text_is_read_however_it_is_stored(tmp_path: Path, column: pa.Array) -> None:
    write(tmp_path, column)
    assert build(tmp_path, "parquet") == (sorted(TEXTS), None)


def test_rows_without_a_text_are_counted_and_arrow_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, pa.array([*BYTES, None, b" ", LATIN[0]], pa.binary()))
    said = "rows left out: 2 without text, 1 not UTF-8 of 63"
    assert build(tmp_path, "parquet") == (sorted(TEXTS), said)
    (tmp_path / "arrow").mkdir()
    with pa.ipc.new_file(str(tmp_path / "arrow" / "data.arrow"), pa.schema([("text", pa.string())])) as file:
        file.write_table(pa.table({"text": TEXTS}))
    assert build(tmp_path / "arrow", "arrow") == (sorted(TEXTS), None)


@pytest.mark.parametrize(
    ("column", "name", "message"),
    [
        (pa.array(TEXTS), "content", "--column text is not there; expected one of content"),
        (pa.array(range(60)), "text", "--column text is not text; none of text, number is"),
        (pa.array([{"text": text} for text in TEXTS]), "text", "--column text is not text; none of"),
        (pa.array([[text] for text in TEXTS]), "text", "--column text is not text; none of"),
        (pa.array([], pa.string()), "text", "0 documents among 0 rows"),
        (
            pa.array([None] * 9, pa.string()),
            "text",
            r"0 documents among 9 rows .* \(rows left out: 9 without text of 9\)",
        ),
        (pa.array(LATIN, pa.binary()), "text", r"0 documents .* \(rows left out: 60 not UTF-8 of 60\)"),
    ],
)
def test_a_column_without_text_is_refused_in_one_line(
    tmp_path: Path, column: pa.Array, name: str, message: str
) -> None:
    write(tmp_path, column, name)
    with pytest.raises(ConfigError, match=message) as caught:
        build(tmp_path, "parquet")
    assert "\n" not in str(caught.value)


def test_files_that_are_broken_or_of_another_encoding_are_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, pa.array(TEXTS))
    whole = (tmp_path / "data.parquet").read_bytes()
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    cases = [
        ("parquet", whole[:-50], "Parquet magic bytes not found"),
        ("parquet", whole[:60] + bytes(100) + whole[160:], r"--data-files .*data\.\*: after row 0: "),
        ("parquet", b"", "size is 0 bytes"),
        ("json", lines.encode("latin-1"), r"data\.\*: after row 0: byte 0xe9 is not UTF-8; `iconv"),
        ("json", lines.encode("utf-16"), "JSON parse error"),
        ("csv", f"text\n{TEXTS[0]}".encode("latin-1"), "byte 0xe9 is not UTF-8; `iconv -f ENCODING -t UTF-8`"),
        ("text", TEXTS[0].encode("latin-1"), "byte 0xe9 is not UTF-8"),
    ]
    for number, (kind, data, message) in enumerate(cases):
        (folder := tmp_path / str(number)).mkdir()
        (folder / "data.file").write_bytes(data)
        with pytest.raises(ConfigError, match=message) as caught:
            build(folder, kind)
        assert "\n" not in str(caught.value)
