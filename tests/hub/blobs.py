"""Content on disk by its sha256, and the parts of uploads that are under way."""

from __future__ import annotations

import hashlib
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

CHUNK = 1 << 20


class Readable(Protocol):
    """A stream that gives at most `size` bytes, and b"" only at its end."""

    def read(self, size: int = ..., /) -> bytes: ...


class BadBlobError(Exception):
    """What arrived is not what its name promised."""


def git_oid(data: bytes) -> str:
    """Git's name for a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def pointer_oid(sha256: str, size: int) -> str:
    """Git's name for the LFS pointer to this content, which is what git stores in its place."""
    return git_oid(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode())


def write_atomically(path: Path, data: bytes) -> None:
    """A reader, or a restart, sees the old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(data)
    temporary.replace(path)


class Blobs:
    """Files named by their sha256 under `root`. A name exists only when its content is complete and checked."""

    def __init__(self, root: Path) -> None:
        self._root = root / "blobs"
        self._uploads = root / "uploads"
        self._root.mkdir(parents=True, exist_ok=True)
        self._uploads.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Raises ValueError for what is not a digest, so that a name from outside never leaves the folder."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"not a sha256: {sha256!r}")
        return self._root / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def size(self, sha256: str) -> int:
        return self.path(sha256).stat().st_size

    def delete(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def add_bytes(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256):
            write_atomically(self.path(sha256), data)
        return sha256

    def add_file(self, source: Path) -> str:
        """Copies a local file in; returns its sha256."""
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if not self.has(sha256):
            temporary = self._temporary()
            shutil.copyfile(source, temporary)
            self._keep(temporary, sha256)
        return sha256

    def receive(self, stream: Readable, sha256: str) -> None:
        """Stores what the stream gives. Raises BadBlobError if its digest is not `sha256`; then nothing is kept."""
        temporary = self._temporary()
        try:
            with temporary.open("wb") as file:
                shutil.copyfileobj(stream, file, CHUNK)
            self._check_and_keep(temporary, sha256)
        finally:
            temporary.unlink(missing_ok=True)

    def receive_part(self, stream: Readable, sha256: str, number: int) -> str:
        """Stores one part of an upload; a repeated part replaces the first. Returns its ETag."""
        temporary = self._temporary()
        try:
            with temporary.open("wb") as file:
                shutil.copyfileobj(stream, file, CHUNK)
            part = self._part(sha256, number)
            part.parent.mkdir(exist_ok=True)
            with temporary.open("rb") as file:
                etag = hashlib.file_digest(file, "sha256").hexdigest()[:32]
            temporary.replace(part)
        finally:
            temporary.unlink(missing_ok=True)
        return etag

    def complete(self, sha256: str, numbers: Sequence[int]) -> None:
        """Joins the parts. Raises BadBlobError if one is missing or the whole is not `sha256`."""
        temporary = self._temporary()
        try:
            with temporary.open("wb") as whole:
                for number in numbers:
                    if not self._part(sha256, number).exists():
                        raise BadBlobError(f"part {number} was not uploaded")
                    with self._part(sha256, number).open("rb") as part:
                        shutil.copyfileobj(part, whole, CHUNK)
            self._check_and_keep(temporary, sha256)
        finally:
            temporary.unlink(missing_ok=True)
        shutil.rmtree(self._uploads / sha256, ignore_errors=True)

    def _part(self, sha256: str, number: int) -> Path:
        return self._uploads / sha256 / str(number)

    def _temporary(self) -> Path:
        return self._uploads / f".{uuid.uuid4().hex}"

    def _check_and_keep(self, temporary: Path, sha256: str) -> None:
        with temporary.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise BadBlobError(f"content has sha256 {found}, not {sha256}")
        self._keep(temporary, sha256)

    def _keep(self, temporary: Path, sha256: str) -> None:
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)
