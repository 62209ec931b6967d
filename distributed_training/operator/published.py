"""A published checkpoint that a person names on the command line, and its run."""

from __future__ import annotations

import argparse
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.description import STATE_FILE
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.checkpoints.local import LocalCheckpoints, local_ref
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.settings.places import parse_repo

CACHE = "~/.cache/distributed-training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("place", metavar="REPO_OR_DIR", help="ORG/NAME on the Hub, or a folder: one checkpoint, or all")
    parser.add_argument("--revision", metavar="TAG", help="tag, branch or commit on the Hub (default: main)")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="folder of the run: its manifest.json is trusted")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(CACHE),
        metavar="DIR",
        help=f"where fetched files stay (default: {CACHE})",
    )


def find(options: argparse.Namespace) -> tuple[CheckpointStore, CheckpointRef]:
    """Raises ConfigError for a place that holds no checkpoint, LocalFault, WireError."""
    folder = Path(options.place).expanduser()
    if not folder.is_dir():
        return _on_hub(options)
    if options.revision is not None:
        raise ConfigError(f"--revision: {folder} is a folder; name the checkpoint's own, like {folder}/round-000004")
    if (folder / STATE_FILE).is_file():
        return LocalCheckpoints(folder.parent), local_ref(folder.absolute())
    store = LocalCheckpoints(folder.absolute())
    newest = store.newest()
    if newest is None:
        raise ConfigError(f"{folder}: expected a folder with a {STATE_FILE}, or with checkpoints like round-000004")
    return store, newest


def trusted_manifest(options: argparse.Namespace) -> RunManifest | None:
    """Of --run-dir; None: the asker has none."""
    return None if options.run_dir is None else load_manifest(options.run_dir / "manifest.json")


def _on_hub(options: argparse.Namespace) -> tuple[CheckpointStore, CheckpointRef]:
    try:
        repo = parse_repo(options.place)
    except ValueError:
        raise ConfigError(f"{options.place}: expected ORG/NAME on the Hub, or a folder that is there") from None
    store = HubCheckpoints(repo.repo_id, "any", options.cache.expanduser() / "checkpoints")
    store.check(write=False)
    return store, store.at(options.revision or repo.revision or "main")
