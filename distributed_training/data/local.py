"""Pages on the local disk: built once from any text, in FineWeb's parquet schema, and read back page by page."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.build.progress import bar
from distributed_training.data.chunks import row_groups
from distributed_training.data.corpus import DOCUMENT_BYTES, Document, read_corpus, stdlib_dir
from distributed_training.data.page_file import PAGES_FILE, PageTable, building, open_page_table, write_page_table
from distributed_training.data.pages import (
    FileEntry,
    Heldout,
    PageColumns,
    PageEntry,
    PageHeader,
    Recipe,
    page_digest,
)
from distributed_training.data.places.base import Directory
from distributed_training.data.reading import TablePages
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.paths import shown

STDLIB_PAGES = 512
PAGE_BYTES, HELDOUT_BYTES = 32_000, 256_000  # of text, where its amount is not known
MAX_PAGE_BYTES, MAX_HELDOUT_BYTES = 3_000_000, 3_000_000  # a page of FineWeb; 256 sequences of 2,048 tokens and more
_MANY_PAGES = 1 << 14
_FILE_BYTES = 64 << 20  # of text in a file of pages: memory holds one
TEXT = "text"  # the column of pages built here
HELDOUT_FILE = "heldout.parquet"
PAGES_PER_FILE = 128
STDLIB = "standard library"
BUILDING_S = 300.0  # how long one who builds the same pages is waited for
_READ_AHEAD = 4  # read this many times the text that is asked for, so that what is used is a mix of many files
FINEWEB_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class PageSet:
    """What `build_pages` left in `directory`. `sha256` (hex) goes into the run manifest with `num_pages`."""

    directory: Path
    sha256: str
    num_pages: int


def build_pages(
    out_dir: Path,
    text_dir: Path | None,
    *,
    num_pages: int | None,
    page_bytes: int | None = None,
    heldout_bytes: int | None = None,
    min_pages: int = 16,
    say: Callable[[str], None] = lambda line: None,
) -> PageSet:
    """Build pages from `text_dir` (or one file), or from the standard library (None), or reuse those in `out_dir` if
    they were made of the same.

    Same text and arguments, same `sha256`. A page is one row group of whole documents, `page_bytes` of UTF-8 or up to
    4 kB more; None: by the amount of text, see `_recipe`. `num_pages` None: 512 from the standard library, all there
    is from a directory. The held-out set takes `heldout_bytes`, at most 1/20 of the text. With less text there are
    fewer pages; under `min_pages` ConfigError. `say` is told what was taken of the text and what was not.
    """
    if any(number is not None and number < 1 for number in (num_pages, page_bytes, heldout_bytes)):
        given = f"{num_pages}, {page_bytes}, {heldout_bytes}"
        raise ConfigError(f"num_pages, page_bytes and heldout_bytes must be positive, got {given}")
    wanted = STDLIB_PAGES if num_pages is None and text_dir is None else num_pages
    done = complete_table(out_dir)
    if done is None and _of_the_hub(out_dir):
        raise ConfigError(f"{shown(out_dir)} holds the {PAGES_FILE} of a data set on the Hub: use another directory")
    if done is not None and text_dir is None and done.header.recipe.text == STDLIB:  # it does not change
        return _page_set(out_dir, done, _recipe(STDLIB, None, num_pages, page_bytes, heldout_bytes), min_pages)
    ahead = wanted and _READ_AHEAD * (wanted * (page_bytes or PAGE_BYTES) + (heldout_bytes or HELDOUT_BYTES))
    with (
        bar("text", None) as tick,
        read_corpus(text_dir, ahead, spool_dir=_existing(out_dir), skip=out_dir, tick=tick) as corpus,
    ):
        for line in corpus.tally.lines() if text_dir is not None else ():
            say(line)
        text = STDLIB if text_dir is None else f"directory {corpus.digest}"
        known = None if wanted is not None else corpus.text_bytes
        recipe = _recipe(text, known, num_pages, page_bytes, heldout_bytes)
        plan = _plan(corpus.sizes, wanted, recipe)
        if not corpus.sizes:
            raise ConfigError(f"{shown(text_dir or stdlib_dir())} holds no text: {corpus.tally.lines()[0]}")
        if len(plan.pages) < min_pages:
            raise ConfigError(_too_little(text_dir or stdlib_dir(), recipe, plan, min_pages))
        if done is None:
            with building(out_dir, BUILDING_S):
                done = complete_table(out_dir) or _write(out_dir, recipe, plan, corpus.documents())
    return _page_set(out_dir, done, recipe, min_pages)


class LocalPages(TablePages):
    """The PageSource over a directory that `build_pages` made. Nothing is cached."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError when there is no valid page manifest."""
        super().__init__(open_page_table(directory / PAGES_FILE), [Directory(directory)])


def complete_table(out_dir: Path) -> PageTable | None:
    """The manifest in `out_dir` if every file it names is there at its size; written last, so it marks the end."""
    try:
        table = open_page_table(out_dir / PAGES_FILE)
        whole = all((out_dir / entry.name).stat().st_size == entry.num_bytes for entry in table.header.files)
    except (ConfigError, OSError):
        return None
    return table if whole else None


def _of_the_hub(out_dir: Path) -> bool:
    """Pages whose files lie elsewhere: they may be whole, and are not ours to replace."""
    try:
        return open_page_table(out_dir / PAGES_FILE).header.dataset is not None
    except ConfigError:
        return False


def _recipe(
    text: str, text_bytes: int | None, num_pages: int | None, page_bytes: int | None, heldout_bytes: int | None
) -> Recipe:
    """With sizes where nobody chose them: many small pages of little text, so that every uid gets some of it, and
    fewer large ones of much. `text_bytes` None: unknown."""
    page, heldout = PAGE_BYTES, HELDOUT_BYTES
    if text_bytes is not None:
        page = min(max(text_bytes // _MANY_PAGES, DOCUMENT_BYTES // 2), MAX_PAGE_BYTES)
        heldout = MAX_HELDOUT_BYTES
    return Recipe(text=text, page_bytes=page_bytes or page, heldout_bytes=heldout_bytes or heldout, num_pages=num_pages)


def _page_set(out_dir: Path, done: PageTable, recipe: Recipe, min_pages: int) -> PageSet:
    """Raises ConfigError for pages that were there and are others than those of `recipe`."""
    there = done.header.recipe
    if there == recipe and done.num_pages >= min_pages:
        return PageSet(out_dir, done.sha256, done.num_pages)
    if there.text != recipe.text:
        why = "pages of other text"
    else:
        was, now = (f"{r.page_bytes} bytes, {r.heldout_bytes} held out, limit {r.num_pages}" for r in (there, recipe))
        why = f"{done.num_pages} pages of this text in other sizes ({was}; asked for: {now}, at least {min_pages})"
    raise ConfigError(f"{shown(out_dir)} holds {why}: use another directory, or delete this one if no run needs it")


class _Plan(NamedTuple):
    """How many documents, in their order, go where."""

    heldout: int
    pages: list[int]


def _plan(sizes: Sequence[int], num_pages: int | None, recipe: Recipe) -> _Plan:
    assert recipe.page_bytes is not None and recipe.heldout_bytes is not None
    left = iter(sizes)
    heldout, _ = _take(left, min(recipe.heldout_bytes, max(1, sum(sizes) // 20)))
    pages: list[int] = []
    while num_pages is None or len(pages) < num_pages:
        count, num_bytes = _take(left, recipe.page_bytes)
        if num_bytes < recipe.page_bytes:
            break
        pages.append(count)
    return _Plan(heldout, pages)


def _take(sizes: Iterator[int], num_bytes: int) -> tuple[int, int]:
    """How many of the next documents hold `num_bytes`, or all that are left; and how many bytes they hold."""
    count = total = 0
    while total < num_bytes and (size := next(sizes, None)) is not None:
        count, total = count + 1, total + size
    return count, total


def _too_little(text: Path, recipe: Recipe, plan: _Plan, min_pages: int) -> str:
    assert recipe.page_bytes is not None
    needed = max(1e5, min_pages * (recipe.page_bytes + recipe.page_bytes // 8))
    return (
        f"{shown(text)} holds text for {len(plan.pages)} pages of {recipe.page_bytes} bytes, expected at least "
        f"{min_pages}: about {needed / 1e6:.1f} MB of distinct UTF-8 text"
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((above for above in (folder, *folder.absolute().parents) if above.is_dir()), Path("/"))


def _write(out_dir: Path, recipe: Recipe, plan: _Plan, documents: Iterator[Document]) -> PageTable:
    files: list[FileEntry] = []
    entries: list[tuple[PageEntry, bytes]] = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / PAGES_FILE).unlink(missing_ok=True)
        with bar("pages", len(plan.pages)) as tick:
            for name, counts in _files(plan, recipe):
                part = [list(islice(documents, count)) for count in counts]
                file, found = _write_file(out_dir / name, part)
                entries += [
                    (entry._replace(file=len(files), text_bytes=_size(group)), _digest(group))
                    for entry, group in zip(found, part, strict=True)
                ]
                files.append(file)
                for group in part if name != HELDOUT_FILE else ():
                    tick(_size(group))
    except OSError as error:
        raise ConfigError(f"cannot write pages to {shown(out_dir)}: {error.strerror or error}") from None
    (piece, digest), *entries = entries
    held = Heldout(**piece._asdict(), digest=digest.hex())
    header = PageHeader(version=2, recipe=recipe, dataset=None, files=tuple(files), heldout=(held,))
    return write_page_table(out_dir / PAGES_FILE, header, PageColumns.of(entries))


def _files(plan: _Plan, recipe: Recipe) -> Iterator[tuple[str, list[int]]]:
    """Names, and how many documents each of their row groups has."""
    assert recipe.page_bytes is not None
    yield HELDOUT_FILE, [plan.heldout]
    pages = min(PAGES_PER_FILE, max(1, _FILE_BYTES // recipe.page_bytes))
    for number, start in enumerate(range(0, len(plan.pages), pages)):
        yield f"pages-{number:05d}.parquet", plan.pages[start : start + pages]


def _size(documents: Sequence[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _write_file(path: Path, groups: Sequence[Sequence[Document]]) -> tuple[FileEntry, tuple[PageEntry, ...]]:
    """One parquet file with a row group for each group. Appears whole or not at all."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, FINEWEB_SCHEMA, compression="snappy") as writer:
        for group in groups:
            writer.write_table(_table(group), row_group_size=len(group))
    data = buffer.getvalue().to_pybytes()
    write_whole(path, data, shared=True)
    column = row_groups(pq.read_metadata(pa.BufferReader(data)), TEXT)
    sha256 = hashlib.sha256(data).hexdigest()
    return column.file_entry(path.name, len(data), TEXT, sha256), column.groups


def _table(documents: Sequence[Document]) -> pa.Table:
    count = len(documents)
    columns: dict[str, list[Any]] = {
        "text": [document.text for document in documents],
        "id": [f"{document.path}:{document.offset}" for document in documents],
        "dump": ["local"] * count,
        "url": [None] * count,
        "date": [None] * count,
        "file_path": [document.path for document in documents],
        "language": [None] * count,
        "language_score": [None] * count,
        "token_count": [None] * count,
    }
    return pa.table(columns, schema=FINEWEB_SCHEMA)


def _digest(documents: Sequence[Document]) -> bytes:
    return page_digest(document.text for document in documents)
