"""What a repository of the Hub holds: whose files are on main, and which large files are stored for which commits."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from distributed_training.checkpoints.description import STATE_FILE, parse_description
from distributed_training.errors import ConfigError, WireError
from distributed_training.hub import Repo, ask, hub_errors, require_token

log = logging.getLogger(__name__)

GIT = ".gitattributes"  # the Hub puts it into every repository; nobody reads it
_OF_NOBODY = {GIT, "README.md"}  # a new repository may have a card


def look(api: HfApi, repo: Repo, revision: str) -> ModelInfo:
    """A revision's commit sha and its files with sizes."""
    call = partial(api.model_info, repo.id, revision=revision, files_metadata=True)
    return ask(repo, f"cannot look at {revision}", call)


def create(api: HfApi, repo: Repo) -> None:
    """Raises ConfigError when our token may not."""
    require_token(api, repo)
    with hub_errors(repo, f"cannot create {repo.id}"):
        api.create_repo(repo.id, exist_ok=True)


def names(info: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or ()}


def require_ours(repo: Repo, head: ModelInfo, state: bytes | None) -> None:
    """state: its training_state.json, None: it has none. Raises ConfigError for a head with files that no run of ours
    has put there: a commit of ours would delete them all."""
    there = sorted(names(head) - _OF_NOBODY)
    try:
        if there:
            parse_description(state or b"")
    except WireError:
        raise ConfigError(
            f"{repo} holds other things than checkpoints ({there[0][:80]!r}, and no {STATE_FILE} of ours), which "
            "publishing would delete: name a repository of its own, which may be new"
        ) from None


def all_stored(api: HfApi, repo: Repo, sha: str) -> bool:
    """Are the large files of this commit still there? Those of a commit without a tag may have been deleted."""
    needed = _large([look(api, repo, sha)])
    return not needed or needed <= {item.file_oid for item in api.list_lfs_files(repo.id)}


def drop_unused(api: HfApi, repo: Repo, kept: Collection[str]) -> None:
    """Delete the large files that none of these commits refers to."""
    used = _large([look(api, repo, sha) for sha in kept])
    objects = list(api.list_lfs_files(repo.id))
    if not used <= {item.file_oid for item in objects}:  # then these are not the names we take them for
        log.warning("%s lists its large files in another way than expected; none is deleted", repo)
        return
    unused = [item for item in objects if item.file_oid not in used]
    if unused:
        api.permanently_delete_lfs_files(repo.id, unused, rewrite_history=False)


def _large(infos: Collection[ModelInfo]) -> set[str]:
    return {s.lfs.sha256 for info in infos for s in info.siblings or () if s.lfs is not None}
