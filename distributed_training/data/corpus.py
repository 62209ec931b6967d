"""Local text as a shuffled stream of documents: this Python's standard library, or any folder or file of text.

What is read depends on the names and contents of the files alone, not on the order in which a file system gives them,
on locale, or on times.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from distributed_training.data.encodings import NotText, blocks, encoding_of
from distributed_training.data.text_files import Tally, holds_rows, named_files, open_file, walk
from distributed_training.errors import ConfigError

DOCUMENT_BYTES = 4_000
_LINE_CHARS = 1_000  # longer lines are cut: at most 4,000 bytes of UTF-8
_IN_MEMORY = 64 << 20  # bytes of text; more is kept in a file without a name until the pages are written
_RECORD = struct.Struct("<IQI")  # bytes of the path, offset of the document, bytes of its text; both follow
# Below the standard library, but installed packages, or mostly tables of character codes.
_STDLIB_SKIPPED = frozenset({b"site-packages", b"dist-packages", b"__pycache__", b"encodings", b"cjkencodings"})


class Document(NamedTuple):
    text: str
    path: str  # relative to the root of the text, with forward slashes; bytes that are not UTF-8 as \\xNN
    offset: int  # characters from the start of the file


class Corpus:
    """Distinct documents of at most 4 kB (longer files are split at line ends). Close it: their text may lie in a
    temporary file, so that memory holds some 200 bytes for each."""

    def __init__(self, spool: IO[bytes], entries: list[tuple[bytes, int, int]], tally: Tally, digest: str) -> None:
        self._spool, self._entries, self.tally = spool, sorted(entries), tally
        self.digest = digest  # hex; of the documents with their paths
        self.sizes = [size for _, _, size in self._entries]  # bytes of UTF-8 of each, in the order of `documents`

    @property
    def text_bytes(self) -> int:
        return sum(self.sizes)

    def documents(self) -> Iterator[Document]:
        """In an order given by blake2b of (path, offset): the same for the same files on every machine."""
        for _, at, _ in self._entries:
            self._spool.seek(at)
            path_bytes, offset, size = _RECORD.unpack(self._spool.read(_RECORD.size))
            path = self._spool.read(path_bytes)
            yield Document(self._spool.read(size).decode(), path.decode(errors="backslashreplace"), offset)

    def close(self) -> None:
        self._spool.close()

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_corpus(
    root: Path | None,
    max_bytes: int | None,
    *,
    spool_dir: Path | None = None,
    skip: Path | None = None,
    tick: Callable[[int], None] = lambda num_bytes: None,
) -> Corpus:
    """The text of a folder, of one file, or of the standard library (None). Files are taken in an order like that of
    the documents until about `max_bytes` of text were read.

    Left out and counted: what is not certainly text (`encodings.py`), cannot be read, is no file, or changes while it
    is read; what is hidden; and links to folders, as they may lead anywhere (links to files are read). The folder
    `skip` is passed over. `tick` is told the bytes of text of each file. Raises ConfigError when `root` cannot be read.
    """
    tally = Tally()
    if root is None:
        files = list(walk(os.fsencode(stdlib_dir()), tally, b".py", _STDLIB_SKIPPED))
    else:
        files = named_files(root, tally, skip)
    spool = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=None if spool_dir is None else str(spool_dir))  # noqa: SIM115 - the corpus closes it
    reader = _Reader(spool, tally)
    try:
        for name, path in sorted(files, key=lambda file: _shuffle_key(file[0], 0)):
            if max_bytes is not None and reader.text_bytes >= max_bytes:
                tally.left_out["not needed"] += 1
                continue
            tally.rows += holds_rows(name)
            before = reader.text_bytes
            try:
                reader.take(name, path)
                tally.taken += 1
            except NotText as error:
                tally.left_out[str(error)] += 1
            tick(reader.text_bytes - before)
    except BaseException:
        with suppress(OSError):  # no room: what ended us is told
            spool.close()
        raise
    return Corpus(spool, reader.entries, tally, reader.digest.hexdigest())


def split(text: Iterable[str], path: str) -> Iterator[Document]:
    """The text, given in blocks, cut at line ends into documents of at most 4 kB of UTF-8; nothing is lost."""
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


def _pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Lines; long ones in pieces. However the text is cut into blocks, the pieces are the same."""
    rest = ""
    for block in blocks:
        *lines, rest = (rest + block).splitlines(keepends=True) or [""]  # the last may go on: even \r, with \n
        for line in lines:
            yield from _cut(line)
        whole = max(0, len(rest) - 1) // _LINE_CHARS * _LINE_CHARS
        yield from _cut(rest[:whole])
        rest = rest[whole:]
    yield from _cut(rest)


def _cut(line: str) -> Iterator[str]:
    for start in range(0, len(line), _LINE_CHARS):
        yield line[start : start + _LINE_CHARS]


class _Reader:
    """Files into the spool. Afterwards `entries`: key of the order, place in the spool, bytes of text."""

    def __init__(self, spool: IO[bytes], tally: Tally) -> None:
        self._spool, self._tally = spool, tally
        self._seen: set[bytes] = set()
        self.entries: list[tuple[bytes, int, int]] = []
        self.digest = hashlib.blake2b(digest_size=16)
        self.text_bytes = 0

    def take(self, name: bytes, path: bytes) -> None:
        """Raises NotText for a file that is left out: then nothing of it counts. ConfigError: no room in the spool."""
        size, count, digest, added = self.text_bytes, len(self.entries), self.digest.copy(), set[bytes]()
        try:
            with open_file(path) as file:
                before = os.fstat(file.fileno())
                encoding, errors = encoding_of(file, before.st_size)
                documents = (found for found in split(blocks(file, encoding, errors), "") if found.text.strip())
                if sum(self._add(name, document, added) for document in documents) == 0:
                    raise NotText("empty")
                after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise NotText("changed while being read")
            self._tally.damaged += errors == "ignore"
        except (NotText, UnicodeDecodeError, OSError) as error:
            self.text_bytes, self.digest = size, digest
            del self.entries[count:]
            self._seen -= added
            if isinstance(error, NotText):
                raise
            raise NotText("unreadable" if isinstance(error, OSError) else "changed while being read") from None

    def _add(self, name: bytes, document: Document, added: set[bytes]) -> int:
        """1, whether or not it was there already."""
        data = document.text.encode()
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest not in self._seen:
            self._seen.add(digest)
            added.add(digest)
            key = _shuffle_key(name, document.offset)
            self.entries.append(
                (key, self._keep(_RECORD.pack(len(name), document.offset, len(data)) + name + data), len(data))
            )
            self.digest.update(key + digest)
            self.text_bytes += len(data)
        return 1

    def _keep(self, record: bytes) -> int:
        try:
            at = self._spool.tell()
            self._spool.write(record)
        except OSError as error:
            raise ConfigError(
                f"the text cannot be kept until it is written as pages: {error.strerror or error}"
            ) from None
        return at


def _shuffle_key(path: bytes, offset: int) -> bytes:
    return hashlib.blake2b(path + b"\0" + offset.to_bytes(8, "little"), digest_size=16).digest()
