"""Pages on the local disk: built once from any text, in FineWeb's parquet schema, and read back page by page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.chunks import row_groups
from distributed_training.data.corpus import Document, read_documents, stdlib_dir
from distributed_training.data.page_file import PAGES_FILE, PageTable, open_page_table, write_page_table
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

STDLIB_PAGES = 512
TEXT = "text"  # the column of pages built here
HELDOUT_FILE = "heldout.parquet"
PAGES_PER_FILE = 128
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
    page_bytes: int = 32_000,
    heldout_bytes: int = 256_000,
    min_pages: int = 16,
) -> PageSet:
    """Build pages from `text_dir`, or from the standard library (None), or reuse what is complete in `out_dir`.

    Same text and arguments, same `sha256`. A page is one row group of whole documents, `page_bytes` of UTF-8 or up to
    4 kB more. `num_pages` None: 512 from the standard library, all there is from a directory. The held-out set takes
    `heldout_bytes`, at most 1/20 of the text. With less text there are fewer pages; under `min_pages` ConfigError.
    """
    text = "standard library" if text_dir is None else "directory"
    recipe = Recipe(text=text, page_bytes=page_bytes, heldout_bytes=heldout_bytes, num_pages=num_pages)
    done = complete_table(out_dir)
    if done is None:
        wanted = STDLIB_PAGES if num_pages is None and text_dir is None else num_pages
        heldout, pages = _plan(text_dir, wanted, page_bytes, heldout_bytes)
        if len(pages) < min_pages:
            needed = min_pages * (page_bytes + page_bytes // 8)
            raise ConfigError(
                f"{text_dir or stdlib_dir()} holds text for {len(pages)} pages of {page_bytes} bytes, expected at "
                f"least {min_pages}: about {needed / 1e6:.1f} MB of distinct UTF-8 text"
            )
        done = _write(out_dir, recipe, heldout, pages)
    elif done.header.recipe != recipe or done.num_pages < min_pages:
        raise ConfigError(
            f"{out_dir} holds {done.num_pages} pages made with {done.header.recipe}; expected at least {min_pages} "
            f"made with {recipe}: use another directory"
        )
    return PageSet(out_dir, done.sha256, done.num_pages)


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


def _plan(
    text_dir: Path | None, num_pages: int | None, page_bytes: int, heldout_bytes: int
) -> tuple[list[Document], list[list[Document]]]:
    """Held-out documents and the documents of each page, in shuffled order."""
    if page_bytes < 1 or heldout_bytes < 1 or (num_pages is not None and num_pages < 1):
        given = f"{num_pages}, {page_bytes}, {heldout_bytes}"
        raise ConfigError(f"num_pages, page_bytes and heldout_bytes must be positive, got {given}")
    max_bytes = None if num_pages is None else _READ_AHEAD * (num_pages * page_bytes + heldout_bytes)
    documents = read_documents(text_dir, max_bytes)
    groups = iter(documents)
    heldout = _take(groups, min(heldout_bytes, max(1, _size(documents) // 20)))
    pages: list[list[Document]] = []
    while num_pages is None or len(pages) < num_pages:
        page = _take(groups, page_bytes)
        if _size(page) < page_bytes:
            break
        pages.append(page)
    return heldout, pages


def _take(documents: Iterator[Document], num_bytes: int) -> list[Document]:
    """Documents from the iterator until they hold `num_bytes`, or all that are left."""
    taken: list[Document] = []
    size = 0
    while size < num_bytes and (document := next(documents, None)) is not None:
        taken.append(document)
        size += len(document.text.encode())
    return taken


def _size(documents: Sequence[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _write(out_dir: Path, recipe: Recipe, heldout: list[Document], pages: list[list[Document]]) -> PageTable:
    parts = [[heldout]] + [pages[start : start + PAGES_PER_FILE] for start in range(0, len(pages), PAGES_PER_FILE)]
    names = [HELDOUT_FILE] + [f"pages-{number:05d}.parquet" for number in range(len(parts) - 1)]
    files: list[FileEntry] = []
    entries: list[tuple[PageEntry, bytes]] = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / PAGES_FILE).unlink(missing_ok=True)
        for name, part in zip(names, parts, strict=True):
            file, found = _write_file(out_dir / name, part)
            entries += [
                (entry._replace(file=len(files), text_bytes=_size(group)), _digest(group))
                for entry, group in zip(found, part, strict=True)
            ]
            files.append(file)
    except OSError as error:
        raise ConfigError(f"cannot write pages to {out_dir}: {error.strerror or error}") from None
    (piece, digest), *entries = entries
    held = Heldout(**piece._asdict(), digest=digest.hex())
    header = PageHeader(version=2, recipe=recipe, dataset=None, files=tuple(files), heldout=(held,))
    return write_page_table(out_dir / PAGES_FILE, header, PageColumns.of(entries))


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
