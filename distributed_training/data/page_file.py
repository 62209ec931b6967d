"""`pages.bin` on disk: written whole, opened without reading its pages into memory.

    magic | u32 bytes of the header | u32 pages n | u32 digests k | header, canonical JSON, zeros up to a multiple of 8
    | offset u64[n] | file, row_group, length, rows, text_bytes u32[n] each | digest_pages u32[k] | digests u8[k, 32]

All little-endian, so `sha256sum pages.bin` is what the run manifest names.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_training.data.pages import PageColumns, PageEntry, PageHeader, columns_problem, parse_header
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.locks import Lock

PAGES_FILE = "pages.bin"
MAGIC = b"DTPAGES2"
_PREFIX = struct.Struct("<8sIII")
_MAX_HEADER = 1 << 24


class PageTable:
    """An opened page manifest. Pages are read from the mapped file when they are asked for; thread-safe.

    The file must not be changed in place while it is open; replacing it is harmless.
    """

    def __init__(self, header: PageHeader, columns: PageColumns, sha256: str, path: Path) -> None:
        self.header, self.columns, self.sha256, self.path = header, columns, sha256, path

    @property
    def num_pages(self) -> int:
        return len(self.columns.offset)

    @property
    def missing_digests(self) -> int:
        """How many pages have no digest: there the data set's commit is what is trusted."""
        return self.num_pages - len(self.columns.digest_pages)

    def entry(self, index: int) -> PageEntry:
        """Raises IndexError outside [0, num_pages)."""
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} of {self.num_pages}")
        return PageEntry(*(int(getattr(self.columns, name)[index]) for name in PageEntry._fields))

    @property
    def num_pieces(self) -> int:
        """Pages, and the pieces of the held-out set after them."""
        return self.num_pages + len(self.header.heldout)

    def piece(self, index: int) -> PageEntry:
        """A page, or a piece of the held-out set. Raises IndexError outside [0, num_pieces)."""
        return self.entry(index) if index < self.num_pages else self.header.heldout[index - self.num_pages].entry

    def digest(self, index: int) -> bytes | None:
        """What the documents of a page must hash to; None: nobody has said."""
        at = int(np.searchsorted(self.columns.digest_pages, np.uint32(index)))
        if at == len(self.columns.digest_pages) or self.columns.digest_pages[at] != index:
            return None
        return self.columns.digests[at].tobytes()


def building(directory: Path, wait_s: float = 0.0) -> Lock:
    """This process alone makes pages in `directory`, as a context manager. Raises ConfigError; see Lock."""
    return Lock(directory, "wait until its pages are made, or use another directory", name=".lock", wait_s=wait_s)


def write_page_table(path: Path, header: PageHeader, columns: PageColumns) -> PageTable:
    """Write the manifest whole or not at all, and open it. The same pages give the same bytes.

    Raises ConfigError when it cannot be right or cannot be written.
    """
    problem = columns_problem(header, columns)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}")
    try:
        write_whole(path, encode_page_table(header, columns), shared=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    return open_page_table(path)


def open_page_table(path: Path) -> PageTable:
    """Check and map a manifest; half a million pages take a moment and little memory. Raises ConfigError naming the
    file and what was wrong."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # read in blocks: what is mapped stays untouched
            header, columns = decode_page_table(np.memmap(file, mode="r"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; scripts/build_pages.py makes it; for the Hub write hub:ORG/NAME"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; move it away, and a node of a run finds it anew") from None
    return PageTable(header, columns, sha256, path)


def most_bytes(num_pages: int) -> int:
    """Of a `pages.bin` with so many pages: all of them with a digest, and the longest header."""
    return (
        _PREFIX.size
        + _MAX_HEADER
        + 8
        + sum(prod(shape) * _dtype(name).itemsize for name, shape in _shapes(num_pages, num_pages).items())
    )


def encode_page_table(header: PageHeader, columns: PageColumns) -> bytes:
    """The bytes of `pages.bin`. Raises ValueError for columns of other shapes."""
    text = header.canonical()
    counts = len(columns.offset), len(columns.digest_pages)
    parts = [_PREFIX.pack(MAGIC, len(text), *counts), text, bytes(_padding(len(text)))]
    for name, shape in _shapes(*counts).items():
        column = getattr(columns, name)
        if column.shape != shape:
            raise ValueError(f"column {name} has shape {column.shape}, expected {shape}")
        parts.append(column.astype(_dtype(name)).tobytes())
    return b"".join(parts)


def decode_page_table(data: NDArray[np.uint8]) -> tuple[PageHeader, PageColumns]:
    """Header and columns, views of `data`, checked. Raises ValueError."""
    if data[: len(MAGIC)].tobytes() != MAGIC or len(data) < _PREFIX.size:
        raise ValueError("not a page manifest of this version")
    _, header_bytes, pages, digests = _PREFIX.unpack(data[: _PREFIX.size].tobytes())
    if header_bytes > _MAX_HEADER:
        raise ValueError(f"a header of {header_bytes} bytes, expected at most {_MAX_HEADER}")
    text = data[_PREFIX.size : _PREFIX.size + header_bytes].tobytes()
    at = _PREFIX.size + header_bytes + _padding(header_bytes)
    shapes = {name: (shape, _dtype(name)) for name, shape in _shapes(pages, digests).items()}
    expected = at + sum(prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if expected != len(data):
        raise ValueError(f"{len(data)} bytes, expected {expected}: it was cut or added to")
    header = parse_header(text)
    if header.canonical() != text or data[at - _padding(header_bytes) : at].any():
        raise ValueError("the header is not in its one canonical form")
    found: dict[str, NDArray[Any]] = {}
    for name, (shape, dtype) in shapes.items():
        end = at + prod(shape) * dtype.itemsize
        found[name] = data[at:end].view(dtype).reshape(shape)
        at = end
    columns = PageColumns(**found)
    problem = columns_problem(header, columns)
    if problem is not None:
        raise ValueError(problem)
    return header, columns


def _shapes(pages: int, digests: int) -> dict[str, tuple[int, ...]]:
    """The columns in the order of the file."""
    several = {"digest_pages": (digests,), "digests": (digests, 32)}
    return {column.name: several.get(column.name, (pages,)) for column in fields(PageColumns)}


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype({"offset": "<u8", "digests": "u1"}.get(name, "<u4"))


def _padding(header_bytes: int) -> int:
    return -(_PREFIX.size + header_bytes) % 8
