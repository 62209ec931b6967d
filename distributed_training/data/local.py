"""Pages on the local disk: built once from any text, in FineWeb's parquet schema, and read back page by page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distributed_training.data.base import Page
from distributed_training.data.corpus import Document, read_documents, stdlib_dir
from distributed_training.data.pages import (
    PAGES_FILE,
    FileEntry,
    Heldout,
    PageEntry,
    PageManifest,
    Recipe,
    load_page_manifest,
    page_digest,
)
from distributed_training.errors import ConfigError, DataUnavailable

STDLIB_PAGES = 512
HELDOUT_FILE = "heldout.parquet"
_PAGES_PER_FILE = 128
_READ_AHEAD = 4  # read this many times the text that is asked for, so that what is used is a mix of many files
_SCHEMA = pa.schema(
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
    done = _complete(out_dir)
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
    elif done.recipe != recipe or len(done.pages) < min_pages:
        raise ConfigError(
            f"{out_dir} holds {len(done.pages)} pages made with {done.recipe}; expected at least {min_pages} made with "
            f"{recipe}: use another directory"
        )
    return PageSet(out_dir, done.sha256, len(done.pages))


class LocalPages:
    """The PageSource over a directory that `build_pages` made. Reads are thread-safe; nothing is cached but footers."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError when there is no valid page manifest."""
        self._directory = directory
        self._manifest = load_page_manifest(directory / PAGES_FILE)
        self._sha256 = self._manifest.sha256
        self._footers: dict[str, pq.FileMetaData] = {}

    @property
    def num_pages(self) -> int:
        return len(self._manifest.pages)

    @property
    def sha256(self) -> str:
        return self._sha256

    def fetch(self, index: int) -> Page:
        """Raises DataUnavailable (see the seam); IndexError for an index outside [0, num_pages)."""
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} of {self.num_pages}")
        entry = self._manifest.pages[index]
        name = self._manifest.files[entry.file].name
        documents = self._read(name, entry.row_group, f"page {index}")
        return Page(index, documents, _verified(documents, entry.digest, f"page {index} in {name}"))

    def heldout(self) -> tuple[str, ...]:
        heldout = self._manifest.heldout
        documents = self._read(heldout.file, 0, "held-out set")
        _verified(documents, heldout.digest, f"held-out set in {heldout.file}")
        return documents

    def _read(self, name: str, row_group: int, what: str) -> tuple[str, ...]:
        path = self._directory / name
        try:
            with pq.ParquetFile(path, metadata=self._footers.get(name)) as file:
                self._footers[name] = file.metadata
                table = file.read_row_group(row_group, columns=["text"], use_threads=False)
            return _texts(table.column("text").to_pylist())
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            raise DataUnavailable(f"cannot read {what} in {path}: {error}") from error


def _verified(documents: tuple[str, ...], digest: str, what: str) -> bytes:
    found = page_digest(documents)
    if found.hex() != digest:
        raise DataUnavailable(f"{what} has digest {found.hex()[:16]}..., expected {digest[:16]}...")
    return found


def _texts(values: Sequence[str | None]) -> tuple[str, ...]:
    if any(value is None for value in values):
        raise ValueError("null text")
    return tuple(value for value in values if value is not None)


def _complete(out_dir: Path) -> PageManifest | None:
    """The manifest in `out_dir` if every file it names is there at its size; written last, so it marks the end."""
    try:
        manifest = load_page_manifest(out_dir / PAGES_FILE)
        sizes = [(entry.name, entry.num_bytes) for entry in manifest.files]
        sizes.append((manifest.heldout.file, manifest.heldout.num_bytes))
        whole = all((out_dir / name).stat().st_size == size for name, size in sizes)
    except (ConfigError, OSError):
        return None
    return manifest if whole else None


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


def _write(out_dir: Path, recipe: Recipe, heldout: list[Document], pages: list[list[Document]]) -> PageManifest:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / PAGES_FILE).unlink(missing_ok=True)
        heldout_size = _write_file(out_dir / HELDOUT_FILE, [heldout])
        files: list[FileEntry] = []
        entries: list[PageEntry] = []
        for start in range(0, len(pages), _PAGES_PER_FILE):
            part = pages[start : start + _PAGES_PER_FILE]
            name = f"pages-{len(files):05d}.parquet"
            size = _write_file(out_dir / name, part)
            entries += _entries(out_dir / name, len(files), part)
            files.append(FileEntry(name=name, num_bytes=size))
        manifest = PageManifest(
            version=1,
            recipe=recipe,
            files=tuple(files),
            heldout=Heldout(file=HELDOUT_FILE, num_bytes=heldout_size, digest=_digest(heldout)),
            pages=tuple(entries),
        )
        _replace(out_dir / PAGES_FILE, manifest.canonical())
    except OSError as error:
        raise ConfigError(f"cannot write pages to {out_dir}: {error.strerror or error}") from None
    return manifest


def _write_file(path: Path, groups: Sequence[Sequence[Document]]) -> int:
    """One parquet file with a row group for each group; returns its size. Appears whole or not at all."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, _SCHEMA, compression="snappy") as writer:
        for group in groups:
            writer.write_table(_table(group), row_group_size=len(group))
    data = buffer.getvalue().to_pybytes()
    _replace(path, data)
    return len(data)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


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
    return pa.table(columns, schema=_SCHEMA)


def _entries(path: Path, file: int, pages: Sequence[Sequence[Document]]) -> list[PageEntry]:
    footer = pq.read_metadata(path)
    entries: list[PageEntry] = []
    for group, documents in enumerate(pages):
        column = footer.row_group(group).column(0)
        start = column.data_page_offset if column.dictionary_page_offset is None else column.dictionary_page_offset
        length = column.total_compressed_size
        entries.append(PageEntry(file, group, start, length, _size(documents), _digest(documents)))
    return entries


def _digest(documents: Sequence[Document]) -> str:
    return page_digest(document.text for document in documents).hex()
