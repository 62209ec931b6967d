"""The adapter for the place a person named: a folder of this machine, or a repository on the Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import HfApi

from distributed_training.checkpoints.base import CheckpointStore
from distributed_training.checkpoints.description import run_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.data import remote
from distributed_training.data.reading import TablePages
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.hub import HubMissing, Repo, ask, prepare_client
from distributed_training.protocol.manifest import RunManifest
from distributed_training.settings.places import PREFIX, HubRepo, parse_repo

log = logging.getLogger(__name__)

COMMIT = re.compile("[0-9a-f]{40}")
CACHE_GIB = 4.0
CACHE_DIR = "page_cache"  # in the run directory: nodes of one machine share it
OTHERS_DIR = "fetched-others"
FETCHED_DIR = "fetched"  # in the node's own directory: the checkpoint that was fetched last


def open_pages(
    place: Path | HubRepo,
    run_dir: Path | None,
    *,
    mirrors: Sequence[str] = (),
    cache_gib: float = CACHE_GIB,
    public: str = "",
    peers_give: bool = False,
) -> TablePages:
    """The pages of a folder with pages.bin, or of a data set that has one; see `remote.open_pages`.

    What is fetched is kept below `run_dir`, nowhere if that is None. `public`: a last place, as a run manifest says it.
    Raises ConfigError for what a person has to put right, HubFault when the Hub does not answer now.
    """
    prepare_client()
    where = f"hub:{place.repo_id}@{commit_of(place)}" if isinstance(place, HubRepo) else str(place)
    cache_dir = None if run_dir is None else run_dir / CACHE_DIR
    places = [*mirrors, *pinned(public)]
    limit = int(cache_gib * (1 << 30))
    return remote.open_pages(where, places, cache_dir=cache_dir, cache_bytes=limit, peers_give=peers_give)


def open_checkpoints(
    place: Path | HubRepo, node_dir: Path, manifest: RunManifest, *, keep: int, write: bool
) -> CheckpointStore:
    """The checkpoints of a run in a folder, or in a model repository of the Hub; `keep`: see HubCheckpoints.

    Raises ConfigError for what a person has to put right. To `write` that includes a repository we may not write to.
    """
    if isinstance(place, Path):
        store: CheckpointStore = LocalCheckpoints(place)
    else:
        run = run_name(manifest.name, manifest.sha256)
        store = HubCheckpoints(place.repo_id, run, node_dir / FETCHED_DIR, keep=keep)
    try:
        store.check(write=write)
    except LocalFault as error:
        log.warning("checkpoints cannot be reached yet: %s", error)
    except HubMissing as error:
        if write:
            raise
        log.warning("no checkpoints yet: %s", error)
    return store


def repo_opener(node_dir: Path, manifest: RunManifest) -> Callable[[str], CheckpointStore]:
    """For repositories that others name: ORG/NAME -> the store there, or ConfigError. Asks nobody yet."""
    run = run_name(manifest.name, manifest.sha256)
    return lambda repo_id: HubCheckpoints(repo_id, run, node_dir / OTHERS_DIR)


def pinned(public: str) -> list[str]:
    """The place at a commit, or nothing if there is none or it cannot be asked now: pages may come from elsewhere."""
    if not public.startswith(PREFIX):
        return [public] if public else []
    repo = parse_repo(public)
    try:
        return [f"{PREFIX}{repo.repo_id}@{commit_of(repo)}"]
    except (LocalFault, ConfigError) as error:
        log.warning("the run's place of pages: %s", error)
        return []


def commit_of(place: HubRepo) -> str:
    """What a branch or tag names now: what is read must not change while it is read."""
    if place.revision is not None and COMMIT.fullmatch(place.revision):
        return place.revision
    repo = Repo(place.repo_id, "dataset")
    info = ask(
        repo,
        f"cannot find {place}",
        lambda: HfApi().repo_info(repo.id, repo_type=repo.kind, revision=place.revision),
    )
    return str(info.sha)
