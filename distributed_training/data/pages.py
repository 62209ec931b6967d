"""The page manifest: which row group of which file is page j, and what its documents must hash to.

`pages.json` is its canonical JSON; its sha256 stands in the run manifest. The same form serves local files and remote
ones: a page is one byte range (the compressed `text` column of one parquet row group) of one file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from distributed_training.errors import ConfigError

PAGES_FILE = "pages.json"


class PageEntry(NamedTuple):
    """One page. `offset` and `length` are the byte range of its text column chunk in file number `file`."""

    file: int
    row_group: int
    offset: int
    length: int
    text_bytes: int  # UTF-8 bytes of all its documents: a bound to check while decoding
    digest: str  # hex, see `page_digest`


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Section):
    """A parquet file, named relative to the root of the data set."""

    name: str
    num_bytes: int


class Heldout(_Section):
    file: str
    num_bytes: int
    digest: str  # hex, `page_digest` of all its documents


class Recipe(_Section):
    """How the pages were made; a remote data set names its repository and commit in `text`."""

    text: str
    page_bytes: int
    heldout_bytes: int
    num_pages: int | None


class PageManifest(_Section):
    version: Literal[1]
    recipe: Recipe
    files: tuple[FileEntry, ...]
    heldout: Heldout
    pages: tuple[PageEntry, ...]

    @model_validator(mode="after")
    def _consistent(self) -> PageManifest:
        if not self.pages:
            raise ValueError("pages: at least one page is needed")
        for name in [entry.name for entry in self.files] + [self.heldout.file]:
            if not name or name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise ValueError(f"file name {name!r} must be relative and stay inside the data set")
        for index, page in enumerate(self.pages):
            if not 0 <= page.file < len(self.files) or min(page[1:5]) < 0 or len(page.digest) != 64:
                raise ValueError(f"pages.{index}: file, row group, byte range or digest out of range")
        return self

    def canonical(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @property
    def sha256(self) -> str:
        """sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical()).hexdigest()


def page_digest(documents: Iterable[str]) -> bytes:
    """blake3 over the UTF-8 documents, each after its length in bytes as little-endian u64; 32 bytes."""
    hasher = blake3()
    for document in documents:
        data = document.encode()
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.digest()


def load_page_manifest(path: Path) -> PageManifest:
    """Read and check a pages.json. Raises ConfigError naming the file and what was wrong."""
    try:
        return PageManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; scripts/create_run.py builds the pages") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
