"""Pages published as a data set of their own, in one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from distributed_training.data.build.hub import CARD
from distributed_training.data.page_file import PAGES_FILE, PageTable
from distributed_training.data.places.base import Directory
from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.errors import ConfigError
from distributed_training.hub import Repo, hub_errors

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: pages-*.parquet
  - split: test
    path: heldout.parquet
---
Pages of a training run: a row group of `pages-*.parquet` is one page, in the order of `pages.bin`, which holds byte
ranges and content digests. `heldout.parquet` is not trained on.
"""


def upload(folder: Path, table: PageTable, repo: str, tokenizer: Path | None, endpoint: str | None = None) -> str:
    """Make the data set `repo` if there is none, and put all files of `folder` that `table` names there, with
    pages.bin, and tokenizer.json if there is one. Pages that lie on the Hub already are not copied.

    Returns the commit (40 hex digits); files that are there already make no new one. Raises ConfigError or
    HubFault.
    """
    files = {PAGES_FILE: folder / PAGES_FILE}
    if tokenizer is not None:
        files[TOKENIZER_FILE] = tokenizer
    if table.header.dataset is None:
        files |= {entry.name: folder / entry.name for entry in table.header.files}
    api = HfApi(endpoint=endpoint)
    with hub_errors(Repo(repo, "dataset"), f"--upload {repo}: the pages are built, but not published"):
        operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        if table.header.dataset is None and not api.file_exists(repo, CARD, repo_type="dataset"):
            operations.append(CommitOperationAdd(CARD, _CARD.encode()))
        parent = api.dataset_info(repo).sha
        message = f"{table.num_pages} pages, {PAGES_FILE} {table.sha256[:16]}"
        made = api.create_commit(repo, operations, commit_message=message, repo_type="dataset", parent_commit=parent)
    return made.oid


def check_files(folder: Path, table: PageTable) -> None:
    """Are the files in `folder` those that `table` was written for, if it needs any there? Raises ConfigError."""
    place = Directory(folder)
    for file in table.header.files if table.header.dataset is None else ():
        path = folder / file.name
        size = path.stat().st_size if path.is_file() else None
        if size != file.num_bytes:
            has = "is not there" if size is None else f"has {size} bytes, expected {file.num_bytes}"
            raise ConfigError(f"{path} {has}: build the pages again, into another directory")
        if file.sha256 is not None and not place.vouches(file, None):
            raise ConfigError(f"{path} has changed since it was built: build the pages again, into another directory")
