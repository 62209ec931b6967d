"""Documents of any data set written once as pages: parquet row groups in FineWeb's schema, in the order of the rows.

Memory holds one page and the held-out set, however large the data set is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.build.filters import Filter
from distributed_training.data.build.progress import Tick, bar
from distributed_training.data.build.source import RowSource
from distributed_training.data.chunks import row_groups
from distributed_training.data.local import FINEWEB_SCHEMA, HELDOUT_FILE, PAGES_PER_FILE, TEXT, complete_table
from distributed_training.data.page_file import PAGES_FILE, PageTable, building, write_page_table
from distributed_training.data.pages import FileEntry, Heldout, PageColumns, PageEntry, PageHeader, Recipe, page_digest
from distributed_training.errors import ConfigError

MAX_FILE_TEXT = 1 << 29  # bytes of text: a file is what one upload moves
HELDOUT_SHARE = 1 / 20  # of the text, at most


@dataclass(frozen=True, slots=True)
class Choices:
    column: str
    keep: Filter | None
    page_bytes: int  # UTF-8 bytes of a page, or up to one document more
    num_pages: int | None
    heldout_bytes: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    table: PageTable
    text_bytes: int
    left_out: str | None  # rows that became no document, in one line


class _Document(NamedTuple):
    row: int
    text: str
    size: int  # bytes of UTF-8


def rewrite(out: Path, source: RowSource, choices: Choices) -> Rewritten:
    """Write `out`: parquet files, then pages.bin. Finds the same pages there: nothing is done. Same rows and choices,
    same bytes. Raises ConfigError or DataUnavailable."""
    recipe = _recipe(source, choices)
    table = complete_table(out)
    if table is not None:
        if table.header.recipe != recipe:
            raise ConfigError(f"--out {out} holds other pages ({table.header.recipe.text}); use another directory")
        return Rewritten(table, int(table.columns.text_bytes.astype("int64").sum()), None)
    if (out / PAGES_FILE).exists():
        raise ConfigError(f"--out {out} holds a {PAGES_FILE} of other pages; use another directory, or delete it")
    _check_columns(source, choices)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PAGES_FILE).unlink(missing_ok=True)
        with building(out):
            return _write(out, source, choices, recipe)
    except OSError as error:
        raise ConfigError(f"cannot write pages to {out}: {error.strerror or error}") from None


def _recipe(source: RowSource, choices: Choices) -> Recipe:
    about = json.loads(source.about) | {"column": choices.column, "filter": choices.keep.text if choices.keep else None}
    text = json.dumps(about, sort_keys=True)
    return Recipe(
        text=text, page_bytes=choices.page_bytes, heldout_bytes=choices.heldout_bytes, num_pages=choices.num_pages
    )


def _check_columns(source: RowSource, choices: Choices) -> None:
    if choices.column not in source.text_columns:
        there = "is not text" if choices.column in source.columns else "is not there"
        expected = f"expected one of {', '.join(source.text_columns)}"
        none = f"none of {', '.join(source.columns) or 'no columns'} is"
        raise ConfigError(f"--column {choices.column} {there}; {expected if source.text_columns else none}")
    missing = sorted(choices.keep.columns - set(source.columns)) if choices.keep is not None else []
    if missing:
        raise ConfigError(f"--filter: no column {missing[0]}; expected one of {', '.join(source.columns)}")


def _write(out: Path, source: RowSource, choices: Choices, recipe: Recipe) -> Rewritten:
    counts = _Counts()
    heldout: list[_Document] = []
    with _Writer(out, "pages-{:05d}.parquet") as pages, bar("pages", choices.num_pages) as tick:
        documents = _without_heldout(_documents(source, choices, counts), heldout, choices)
        _write_pages(pages, documents, choices, tick)
    if not heldout or not pages.entries:
        raise ConfigError(
            f"--column {choices.column}: {counts.kept} documents among {counts.rows} rows make no page and held-out set"
            + (f" ({told})" if (told := counts.line()) else "")
        )
    with _Writer(out, HELDOUT_FILE) as held:
        for part in _pages_of(iter(heldout), max(choices.page_bytes, choices.heldout_bytes // 16)):
            held.add(part)
    pieces = tuple(Heldout(**entry._asdict(), digest=digest.hex()) for entry, digest in held.entries)
    header = PageHeader(version=2, recipe=recipe, dataset=None, files=(*held.files, *pages.files), heldout=pieces)
    entries = [(entry._replace(file=entry.file + 1), digest) for entry, digest in pages.entries]
    table = write_page_table(out / PAGES_FILE, header, PageColumns.of(entries))
    return Rewritten(table, sum(entry.text_bytes for entry, _ in entries), counts.line())


@dataclass(slots=True)
class _Counts:
    rows: int = 0
    filtered: int = 0
    empty: int = 0
    foreign: int = 0  # bytes that are not UTF-8

    @property
    def kept(self) -> int:
        return self.rows - self.filtered - self.empty - self.foreign

    def line(self) -> str | None:
        counts = [(self.filtered, "by --filter"), (self.empty, "without text"), (self.foreign, "not UTF-8")]
        told = [f"{count:,} {why}" for count, why in counts if count]
        return f"rows left out: {', '.join(told)} of {self.rows:,}" if told else None


def _documents(source: RowSource, choices: Choices, counts: _Counts) -> Iterator[_Document]:
    wanted = choices.keep.columns if choices.keep is not None else frozenset()
    for row in source.rows(sorted({choices.column, *wanted})):
        number, text = counts.rows, row[choices.column]
        counts.rows += 1
        if choices.keep is not None and not choices.keep.keeps(row):
            counts.filtered += 1
        elif (data := _utf8(text)) is None:
            counts.foreign += 1
        elif not data.decode().strip():
            counts.empty += 1
        else:
            yield _Document(number, data.decode(), len(data))


def _utf8(text: object) -> bytes | None:
    """The text as UTF-8, empty for what is none; None: bytes that are not UTF-8, or half a surrogate pair."""
    try:
        return text.encode() if isinstance(text, str) else text if isinstance(text, bytes) and text.decode() else b""
    except UnicodeError:
        return None


def _without_heldout(documents: Iterator[_Document], heldout: list[_Document], choices: Choices) -> Iterator[_Document]:
    """The documents for pages; the others go to `heldout`, spread evenly over what `num_pages` pages need, or else one
    byte of text in twenty until there are enough."""
    share = HELDOUT_SHARE
    if choices.num_pages is not None:
        share = min(share, choices.heldout_bytes / (choices.num_pages * choices.page_bytes + choices.heldout_bytes))
    seen = held = 0
    for document in documents:
        seen += document.size
        if held < min(choices.heldout_bytes, seen * share):
            heldout.append(document)
            held += document.size
        else:
            yield document


def _pages_of(documents: Iterator[_Document], page_bytes: int) -> Iterator[list[_Document]]:
    page: list[_Document] = []
    size = 0
    for document in documents:
        page.append(document)
        size += document.size
        if size >= page_bytes:
            yield page
            page, size = [], 0
    if page:
        yield page


def _write_pages(writer: _Writer, documents: Iterator[_Document], choices: Choices, tick: Tick) -> None:
    for page in _pages_of(documents, choices.page_bytes):
        writer.add(page)
        tick(writer.entries[-1][0].text_bytes)
        if len(writer.entries) == choices.num_pages:
            return


class _Writer:
    """Parquet files named `name` with their number, each there only when it is complete; a page is a row group.
    Afterwards `files` and `entries`, whose file numbers count from 0."""

    def __init__(self, out: Path, name: str) -> None:
        self._out, self._name = out, name
        self.files: list[FileEntry] = []
        self.entries: list[tuple[PageEntry, bytes]] = []
        self._parquet: pq.ParquetWriter | None = None  # the open file, which holds the last pages of `entries`
        self._pages = self._text_bytes = 0

    def add(self, page: Sequence[_Document]) -> None:
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._path(".part"), FINEWEB_SCHEMA, compression="snappy")
        columns = {"text": [document.text for document in page], "id": [str(document.row) for document in page]}
        nothing = {name: [None] * len(page) for name in FINEWEB_SCHEMA.names if name not in columns}
        self._parquet.write_table(pa.table(columns | nothing, schema=FINEWEB_SCHEMA), row_group_size=len(page))
        size = sum(document.size for document in page)
        entry = PageEntry(len(self.files), self._pages, 0, 0, len(page), size)  # where it lies is known in the end
        self.entries.append((entry, page_digest(document.text for document in page)))
        self._pages += 1
        self._text_bytes += size
        if self._pages == PAGES_PER_FILE or self._text_bytes >= MAX_FILE_TEXT:
            self._finish()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        elif self._parquet is not None:
            with suppress(OSError):  # what ended us is told, not that the rest cannot be written either
                self._parquet.close()
            self._path(".part").unlink(missing_ok=True)

    def _path(self, ending: str = "") -> Path:
        return self._out / (self._name.format(len(self.files)) + ending)

    def _finish(self) -> None:
        """Close the open file, name it, and learn from its footer where its pages lie."""
        if self._parquet is None:
            return
        self._parquet.close()
        self._parquet = None
        part, path = self._path(".part"), self._path()
        column = row_groups(pq.read_metadata(part), TEXT)
        with part.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        part.replace(path)
        for at, group in enumerate(column.groups, len(self.entries) - self._pages):
            entry, digest = self.entries[at]
            self.entries[at] = (entry._replace(offset=group.offset, length=group.length), digest)
        self.files.append(column.file_entry(path.name, path.stat().st_size, TEXT, sha256))
        self._pages = self._text_bytes = 0
