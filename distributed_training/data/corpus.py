"""Local text as a shuffled stream of documents: this Python's standard library, or any directory of text files."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from distributed_training.errors import ConfigError

DOCUMENT_BYTES = 4_000
_LINE_CHARS = 1_000  # longer lines are cut: at most 4,000 bytes of UTF-8
# Below the standard library, but installed packages, or mostly tables of character codes.
_STDLIB_SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__", "encodings", "cjkencodings"})


class Document(NamedTuple):
    text: str
    path: str  # relative to the root of the text, with forward slashes
    offset: int  # characters from the start of the file


def read_documents(text_dir: Path | None, max_bytes: int | None) -> list[Document]:
    """Distinct documents of at most 4 kB (longer files are split at line ends), in an order given by blake2b of
    (path, offset): the same for the same files on every machine. Skipped: bytes that are not UTF-8, files that hold a
    NUL byte (not text), hidden files and directories.

    Files are taken in the same kind of order until about `max_bytes` were read. Raises ConfigError when the directory
    cannot be read.
    """
    root = text_dir or stdlib_dir()
    documents: list[Document] = []
    seen: set[bytes] = set()
    left = max_bytes
    files = _files(root, "*", frozenset()) if text_dir else _files(root, "*.py", _STDLIB_SKIPPED)
    for path in files:
        data = _read(path, left)
        relative = path.relative_to(root).as_posix()
        for document in split(data.decode(errors="ignore"), relative):
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if document.text.strip() and digest not in seen:
                seen.add(digest)
                documents.append(document)
        if left is not None:
            left -= len(data)
            if left <= 0:
                break
    return sorted(documents, key=lambda document: _shuffle_key(document.path, document.offset))


def split(text: str, path: str) -> Iterator[Document]:
    """The text in order, cut at line ends into documents of at most 4 kB of UTF-8; nothing is lost."""
    start, size = 0, 0
    parts: list[str] = []
    for piece in _pieces(text):
        piece_size = len(piece.encode())
        if parts and size + piece_size > DOCUMENT_BYTES:
            document = "".join(parts)
            yield Document(document, path, start)
            start, size, parts = start + len(document), 0, []
        parts.append(piece)
        size += piece_size
    if parts:
        yield Document("".join(parts), path, start)


def stdlib_dir() -> Path:
    """Where this Python keeps its standard library's sources."""
    return Path(sysconfig.get_paths()["stdlib"])


def _pieces(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), _LINE_CHARS):
            yield line[start : start + _LINE_CHARS]


def _files(root: Path, pattern: str, skipped: frozenset[str]) -> list[Path]:
    if not root.is_dir():
        raise ConfigError(f"{root} is not a directory of text files")
    found: list[tuple[bytes, Path]] = []
    for path in root.rglob(pattern):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and not skipped.intersection(relative.parts) and path.is_file():
            found.append((_shuffle_key(relative.as_posix(), 0), path))
    return [path for _, path in sorted(found)]


def _read(path: Path, max_bytes: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read() if max_bytes is None else file.read(max_bytes)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    return b"" if b"\0" in data else data


def _shuffle_key(path: str, offset: int) -> bytes:
    name = path.encode(errors="surrogateescape")
    return hashlib.blake2b(name + b"\0" + offset.to_bytes(8, "little"), digest_size=16).digest()
