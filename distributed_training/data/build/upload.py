"""Pages published as a data set of their own, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx

from distributed_training.data.build.hub import CARD
from distributed_training.data.page_file import PAGES_FILE, PageTable
from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.errors import ConfigError, DataUnavailable

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
    DataUnavailable.
    """
    files = {PAGES_FILE: folder / PAGES_FILE}
    if tokenizer is not None:
        files[TOKENIZER_FILE] = tokenizer
    if table.header.dataset is None:
        files |= {entry.name: folder / entry.name for entry in table.header.files}
    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    api = HfApi(endpoint=endpoint)
    try:
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        if table.header.dataset is None and not api.file_exists(repo, CARD, repo_type="dataset"):
            operations.append(CommitOperationAdd(CARD, _CARD.encode()))
        parent = api.dataset_info(repo).sha
        message = f"{table.num_pages} pages, {PAGES_FILE} {table.sha256[:16]}"
        made = api.create_commit(repo, operations, commit_message=message, repo_type="dataset", parent_commit=parent)
    except (OSError, httpx.HTTPError, HFValidationError) as error:
        _explain(repo, error)
    return made.oid


def _explain(repo: str, error: Exception) -> NoReturn:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
        raise ConfigError(
            f"--upload {repo}: needs a token that may write there (HF_TOKEN, or `hf auth login`); the pages are built"
        ) from None
    if isinstance(error, HFValidationError):
        raise ConfigError(f"--upload {repo}: expected ORG/NAME") from None
    if status == 412:
        raise ConfigError(f"--upload {repo}: somebody else wrote there meanwhile; run the same command again") from None
    said = " ".join(str(error).split())[:200]
    raise DataUnavailable(f"--upload {repo}: {said}; the pages are built") from error
