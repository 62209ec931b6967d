"""A run that begins with a model trained before: its round 0 as a checkpoint in the run directory.

The manifest pins it as the state root of round 0 and says no more. Who made the run has the state in its run directory;
all others get it as they get any state they cannot build: from peers, or from the run's checkpoints.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from torch import nn

from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.hub import Repo, ask, prepare_client
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.exporting import exporter_of
from distributed_training.roles.joining.published import load_published
from distributed_training.settings.places import HubRepo, folder_of
from distributed_training.training.flat import load_flat, to_flat
from distributed_training.training.model import run_model
from distributed_training.training.outer import initial_state, state_root
from distributed_training.training.pretrained import load_pretrained

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # in the run directory
_FILES = ["config.json", TOKENIZER_FILE, "*.safetensors", "*.safetensors.index.json"]  # nothing that would run


def fetch_start(place: HubRepo | Path) -> Path:
    """The folder with a model's config.json and safetensors; from the Hub into the cache of its client. Raises
    ConfigError, HubFault."""
    if isinstance(place, Path):
        try:
            return folder_of(place)
        except ConfigError as error:
            raise ConfigError(f"--start: {error}") from None
    prepare_client()
    repo = Repo(place.repo_id)

    def fetch() -> str:
        return HfApi().snapshot_download(repo.id, revision=place.revision, allow_patterns=_FILES)

    return Path(ask(repo, f"cannot fetch {place}", fetch))


def tokenizer_of(start: Path) -> str:
    """The model's own: with another one its numbers mean nothing. Raises ConfigError."""
    if not (start / TOKENIZER_FILE).is_file():
        raise ConfigError(f"--start {start}: it has no {TOKENIZER_FILE}; name the one it was trained with, --tokenizer")
    return str(start / TOKENIZER_FILE)


def write_start(manifest: RunManifest, start: Path, run_dir: Path) -> Path:
    """The state of round 0 into the checkpoints of the run directory; its folder. Raises ConfigError, LocalFault."""
    model = run_model(manifest.model)
    load_pretrained(model, start)
    state, root = initial_state(to_flat(model), manifest.average), bytes.fromhex(manifest.model.initial_root)
    if state_root(state, manifest.average.chunk_coords) != root:
        raise ConfigError(f"--start {start}: its numbers changed while the run was made; try again")
    with tempfile.TemporaryDirectory(prefix=".start-", dir=run_dir) as scratch:
        exporter_of(run_dir, manifest, model, {}, None).write(Path(scratch), 0, state, root)
        return Path(LocalCheckpoints(run_dir / FOLDER).publish(0, Path(scratch)).location)


def take_start(model: nn.Module, manifest: RunManifest, run_dir: Path) -> None:
    """Put the run's round 0 into `model` if its seed gives another one and the run directory has it."""
    store, state = LocalCheckpoints(run_dir / FOLDER), initial_state(to_flat(model), manifest.average)
    if state_root(state, manifest.average.chunk_coords).hex() == manifest.model.initial_root:
        return
    try:
        if (ref := store.find(0, None)) is not None:
            load_flat(model, load_published(store, ref, manifest).params)
    except (WireError, LocalFault) as error:
        log.warning("round 0 in %s cannot be used: %s", run_dir / FOLDER, error)
