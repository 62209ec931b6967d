"""A published checkpoint that a person names on the command line, and its run."""

from __future__ import annotations

import argparse
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.description import STATE_FILE, run_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.checkpoints.local import FOLDER, LocalCheckpoints, local_ref
from distributed_training.errors import ConfigError
from distributed_training.paths import typed
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.settings.arguments import CACHE
from distributed_training.settings.places import parse_repo

DEMO = "bash scripts/demo.sh"
NEWEST = "newest"
FIRST = "the owner of a run publishes the first one when round 0 begins"
RUNS = Path("runs")  # of the current folder: where the demo puts a run for which no place is given


def find(options: argparse.Namespace) -> tuple[CheckpointStore, CheckpointRef]:
    """Raises ConfigError for a place that holds no checkpoint, LocalFault, WireError."""
    if options.place is None and options.run_dir is None:
        raise ConfigError("expected REPO_OR_DIR, ORG/NAME on the Hub or a folder with checkpoints, or --run-dir")
    if options.place == NEWEST:
        options.place, options.run_dir = None, newest_run(RUNS)
    folder = options.run_dir / FOLDER if options.place is None else typed(options.place)
    if (folder / FOLDER).is_dir():  # the run, not its checkpoints
        folder, options.run_dir = folder / FOLDER, options.run_dir or folder
    if options.place is None and not folder.is_dir():
        raise ConfigError(
            f"{options.run_dir}: no checkpoint yet, {FIRST}; expected checkpoints in it, or REPO_OR_DIR where they are"
        )
    if not folder.is_dir():
        return _on_hub(options)
    if options.revision is not None:
        raise ConfigError(f"--revision: {folder} is a folder; name the checkpoint's own, like {folder}/round-000004")
    if (folder / STATE_FILE).is_file():
        return LocalCheckpoints(folder.parent.absolute()), local_ref(folder.absolute())
    store = LocalCheckpoints(folder.absolute())
    newest = store.newest()
    if newest is None:
        raise ConfigError(
            f"{folder}: no checkpoint yet, expected a folder with a {STATE_FILE}, or with checkpoints like "
            f"round-000004; {FIRST}"
        )
    return store, newest


def newest_run(runs: Path) -> Path:
    """The run directory that was made last. Raises ConfigError when there is none."""
    made = [path for path in runs.glob("*/manifest.json") if path.is_file()]
    if not made:
        raise ConfigError(f"{NEWEST}: no run in {runs.absolute()}; {DEMO} makes one, or give the folder of yours")
    return max(made, key=lambda path: path.stat().st_mtime).parent.absolute()


def history(options: argparse.Namespace, store: CheckpointStore, manifest: RunManifest) -> CheckpointStore:
    """All checkpoints of the run that lie where `find` found one."""
    if not isinstance(store, HubCheckpoints):
        return store
    name = run_name(manifest.name, manifest.sha256)
    return HubCheckpoints(parse_repo(options.place).repo_id, name, cache(options) / FOLDER)


def cache(options: argparse.Namespace) -> Path:
    """Where fetched files stay. Raises ConfigError for a user without a home who names no place."""
    return typed(CACHE) if options.cache is None else options.cache


def trusted_manifest(options: argparse.Namespace) -> RunManifest | None:
    """Of --run-dir; None: the asker has none."""
    return None if options.run_dir is None else load_manifest(options.run_dir / "manifest.json")


def _on_hub(options: argparse.Namespace) -> tuple[CheckpointStore, CheckpointRef]:
    try:
        repo = parse_repo(options.place)
    except ValueError:
        raise ConfigError(f"{options.place}: expected ORG/NAME on the Hub, or a folder that is there") from None
    store = HubCheckpoints(repo.repo_id, "any", cache(options) / FOLDER)
    store.check(write=False)
    return store, store.at(options.revision or repo.revision or "main")
