"""The page manifest: which byte range of which file is page j, and what its documents must hash to where that is known.

`pages.bin` is a header of canonical JSON and little-endian columns (`page_file.py` reads and writes them); the sha256
of the file stands in the run manifest. The same form serves local and remote files: a page is the compressed text
column of one parquet row group.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distributed_training.errors import ConfigError, expected

MAX_CHUNK_BYTES = 1 << 28  # one compressed page
MAX_ROWS = 1 << 24
MAX_TEXT_BYTES = 1 << 30
MAX_FILES = 1 << 16
MAX_HELDOUT = 1 << 12
_MAX_FILE_BYTES = 1 << 48
_MAX_NAME = 1024

Codec = Literal["UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "ZSTD"]
PageTrust = Literal["digest", "commit"]


class PageEntry(NamedTuple):
    """Bytes [offset, offset + length) of file number `file`: the text column chunk of its row group, `rows` texts."""

    file: int
    row_group: int
    offset: int
    length: int
    rows: int
    text_bytes: int  # UTF-8 bytes of all its documents; 0: not known


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Section):
    """A parquet file, named relative to the root of the data set, and how its text column is stored."""

    name: str
    num_bytes: int
    sha256: str | None  # hex, of the whole file, where known
    codec: Codec
    optional: bool  # the column is nullable: its pages have definition levels
    column: str


class Dataset(_Section):
    """Files of a data set on the Hub, at one commit."""

    repo: str
    revision: str  # 40 hex digits


class Heldout(_Section):
    """One piece of the held-out set: the fields of a PageEntry, and the digest of its documents, always."""

    file: int
    row_group: int
    offset: int
    length: int
    rows: int
    text_bytes: int
    digest: str  # hex, see `page_digest`

    @property
    def entry(self) -> PageEntry:
        return PageEntry(self.file, self.row_group, self.offset, self.length, self.rows, self.text_bytes)


class Recipe(_Section):
    """How the pages were made. None: row groups as they are, or no limit."""

    text: str
    page_bytes: int | None
    heldout_bytes: int | None
    num_pages: int | None


class PageHeader(_Section):
    """Everything in a page manifest but the columns of its pages."""

    version: Literal[2]
    recipe: Recipe
    dataset: Dataset | None  # None: the digests are everything, and the same pages may lie anywhere
    files: tuple[FileEntry, ...]
    heldout: tuple[Heldout, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = _header_problem(self)
        if problem is not None:
            raise ValueError(problem)
        return self

    def canonical(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()


def parse_header(data: bytes) -> PageHeader:
    """Raises ValueError, in one line."""
    try:
        return PageHeader.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "header"
        raise ValueError(f"{where}: {expected(first)}") from None


@dataclass(frozen=True, slots=True, eq=False)
class PageColumns:
    """The pages of a manifest, column by column, n pages of which k have a digest."""

    offset: NDArray[np.uint64]  # [n], as all but the last two
    file: NDArray[np.uint32]
    row_group: NDArray[np.uint32]
    length: NDArray[np.uint32]
    rows: NDArray[np.uint32]
    text_bytes: NDArray[np.uint32]
    digest_pages: NDArray[np.uint32]  # [k], ascending: the pages that have a digest
    digests: NDArray[np.uint8]  # [k, 32]

    @classmethod
    def of(cls, pages: Iterable[tuple[PageEntry, bytes | None]]) -> Self:
        """Columns of these pages and their digests, in order."""
        listed = list(pages)
        values = np.array([entry for entry, _ in listed], dtype=np.uint64).reshape(-1, len(PageEntry._fields))
        known = [(index, digest) for index, (_, digest) in enumerate(listed) if digest is not None]
        narrow = {
            name: values[:, at].astype(np.uint32) for at, name in enumerate(PageEntry._fields) if name != "offset"
        }
        return cls(
            offset=values[:, PageEntry._fields.index("offset")].copy(),
            digest_pages=np.array([index for index, _ in known], dtype=np.uint32),
            digests=np.frombuffer(b"".join(digest for _, digest in known), dtype=np.uint8).reshape(len(known), 32),
            **narrow,
        )


def page_digest(documents: Iterable[str]) -> bytes:
    """blake3 over the UTF-8 documents, each after its length in bytes as little-endian u64; 32 bytes."""
    hasher = blake3()
    for document in documents:
        data = document.encode()
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest()


def columns_problem(header: PageHeader, columns: PageColumns) -> str | None:
    """What is wrong with the pages, or None. They are in the order of file and offset and share no byte with each
    other or the held-out set; those without a digest need a data set at a pinned commit."""
    pages = len(columns.offset)
    if not pages:
        return "pages: at least one page is needed"
    sizes = np.array([entry.num_bytes for entry in header.files], dtype=np.uint64)
    for start in range(0, pages, 1 << 16):  # piece by piece: little memory for half a million pages
        bad = _bad_pages(columns, sizes, slice(start, start + (1 << 16)), slice(max(0, start - 1), start + (1 << 16)))
        if bad is not None:
            return f"page {bad}: file, byte range, rows or order out of range"
    known = columns.digest_pages
    if len(known) and (known[-1] >= pages or not (np.diff(known.astype(np.int64)) > 0).all()):
        return "digests: their page numbers must ascend and be those of pages"
    if len(known) < pages and header.dataset is None:
        return f"dataset: {pages - len(known)} pages have no digest, so a data set at a pinned commit must be named"
    for number, piece in enumerate(header.heldout):
        if _shares_bytes(columns, piece.entry):
            return f"heldout.{number}: shares bytes with a page"
    return None


def _bad_pages(columns: PageColumns, sizes: NDArray[np.uint64], part: slice, ordered: slice) -> int | None:
    """The first wrong page of `part`; `ordered` is `part` and the page before it."""
    file, length = columns.file[part], columns.length[part]
    known = file < len(sizes)
    ends = columns.offset[part] + length  # offsets are checked before: no overflow can hide
    good = known & (columns.offset[part] < _MAX_FILE_BYTES) & (ends <= sizes[np.where(known, file, 0)])
    good &= (length > 0) & (length <= MAX_CHUNK_BYTES) & (columns.rows[part] > 0) & (columns.rows[part] <= MAX_ROWS)
    good &= columns.text_bytes[part] <= MAX_TEXT_BYTES
    if not good.all():
        return part.start + int(np.argmin(good))
    files, starts = columns.file[ordered], columns.offset[ordered]
    follows = starts[1:] >= starts[:-1] + columns.length[ordered][:-1]
    after = (files[1:] > files[:-1]) | ((files[1:] == files[:-1]) & follows)
    return None if after.all() else ordered.start + 1 + int(np.argmin(after))


def _shares_bytes(columns: PageColumns, entry: PageEntry) -> bool:
    low, high = (int(np.searchsorted(columns.file, np.uint32(entry.file), side)) for side in ("left", "right"))
    starts = columns.offset[low:high]
    at = int(np.searchsorted(starts, np.uint64(entry.offset), "right"))
    before = at > 0 and int(starts[at - 1]) + int(columns.length[low + at - 1]) > entry.offset
    return before or (at < len(starts) and int(starts[at]) < entry.offset + entry.length)


def _header_problem(header: PageHeader) -> str | None:
    if not 1 <= len(header.files) <= MAX_FILES:
        return f"files: expected 1 to {MAX_FILES}, not {len(header.files)}"
    if len({entry.name for entry in header.files}) < len(header.files):
        return "files: a name stands there twice"
    for number, entry in enumerate(header.files):
        if not safe_name(entry.name):
            return f"files.{number}: name {entry.name[:80]!r} must be relative and stay inside the data set"
        if not 0 <= entry.num_bytes < _MAX_FILE_BYTES or not 0 < len(entry.column) <= _MAX_NAME:
            return f"files.{number}: size or column name out of range"
        if entry.sha256 is not None and not _hex(entry.sha256, 64):
            return f"files.{number}: sha256 is not 64 hex digits"
    if header.dataset is not None:
        if not _hex(header.dataset.revision, 40):
            return "dataset.revision: expected a commit of 40 hex digits, no branch or tag"
        if not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", header.dataset.repo, re.ASCII):
            return f"dataset.repo: {header.dataset.repo[:80]!r} is no name of a data set"
    return _heldout_problem(header)


def _heldout_problem(header: PageHeader) -> str | None:
    if not 1 <= len(header.heldout) <= MAX_HELDOUT:
        return f"heldout: expected 1 to {MAX_HELDOUT} pieces, not {len(header.heldout)}"
    for number, piece in enumerate(header.heldout):
        inside = 0 <= piece.file < len(header.files) and piece.offset >= 0
        if not inside or piece.offset + piece.length > header.files[piece.file].num_bytes:
            return f"heldout.{number}: file or byte range out of range"
        sizes = 0 < piece.length <= MAX_CHUNK_BYTES and 0 < piece.rows <= MAX_ROWS
        if not sizes or piece.row_group < 0 or not 0 <= piece.text_bytes <= MAX_TEXT_BYTES:
            return f"heldout.{number}: length, rows or bytes of text out of range"
        if not _hex(piece.digest, 64):
            return f"heldout.{number}: digest is not 64 hex digits"
    return None


def safe_name(name: Any) -> bool:
    """A relative name of a file that stays inside its directory on every system."""
    parts = str(name).split("/")
    plain = 0 < len(name) <= _MAX_NAME and name.isprintable() and "\\" not in name and ":" not in name
    return plain and not any(part in ("", ".", "..") for part in parts)


def _hex(text: str, digits: int) -> bool:
    return re.fullmatch(f"[0-9a-f]{{{digits}}}", text) is not None


def check_trust(missing_digests: int, page_trust: PageTrust) -> None:
    """Does a page manifest with so many pages without a digest suit the run? Raises ConfigError."""
    if page_trust == "digest" and missing_digests:
        raise ConfigError(
            f"the run asks for a digest of every page (data.page_trust), the page manifest lacks {missing_digests}; "
            "build it with --digests, or make the run with page_trust commit"
        )
