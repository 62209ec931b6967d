"""A run that begins with numbers that are there: its round 0 as a checkpoint in the run directory.

The manifest pins it as the state root of round 0 and says no more. Who made the run has the state in its run directory;
all others get it as they get any state they cannot build: from peers, or from the run's checkpoints.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from torch import nn

from distributed_training.checkpoints.description import STATE_FILE
from distributed_training.checkpoints.local import FOLDER, LocalCheckpoints
from distributed_training.data.tokens import TOKENIZER_FILE
from distributed_training.errors import ConfigError
from distributed_training.hub import Repo, ask, prepare_client
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.build import First
from distributed_training.roles.exporting import exporter_of
from distributed_training.roles.joining.published import MANIFEST_FILE
from distributed_training.settings.places import HubRepo, folder_of
from distributed_training.training.flat import to_flat
from distributed_training.training.model import run_model
from distributed_training.training.outer import RunState, initial_state, state_root
from distributed_training.training.pretrained import load_pretrained

# Nothing that would run, and of a checkpoint of a run no momentum.
_FILES = ["config.json", TOKENIZER_FILE, MANIFEST_FILE, STATE_FILE, "*.safetensors", "*.safetensors.index.json"]
_LEFT = "outer_momentum*"


def fetch_start(place: HubRepo | Path) -> Path:
    """The folder with a model's config.json and safetensors; from the Hub into the cache of its client. A run
    directory, or a folder with a run's checkpoints, stands for the newest one. Raises ConfigError, HubFault,
    WireError."""
    if isinstance(place, Path):
        try:
            return _newest(folder_of(place))
        except ConfigError as error:
            raise ConfigError(f"--start: {error}") from None
    prepare_client()
    repo = Repo(place.repo_id)

    def fetch() -> str:
        return HfApi().snapshot_download(repo.id, revision=place.revision, allow_patterns=_FILES, ignore_patterns=_LEFT)

    return Path(ask(repo, f"cannot fetch {place}", fetch))


def _newest(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    newest = LocalCheckpoints(folder / FOLDER if (folder / FOLDER).is_dir() else folder).newest()
    return folder if newest is None else Path(newest.location)


def tokenizer_of(start: Path) -> tuple[str, int | None]:
    """(name or path, id that ends a document or None) of the model's own: with another one its numbers mean nothing.
    Raises ConfigError."""
    kind, eos = _of_run(start)
    if kind in ("bytes", "gpt2"):
        return kind, None
    path = start / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"--start {start}: it has no {TOKENIZER_FILE}; name the one it was trained with, --tokenizer")
    return str(path), eos


def _of_run(start: Path) -> tuple[str, int | None]:
    """What the manifest beside a run's checkpoint says of the tokeniser, whichever version of the protocol it is of."""
    try:
        data = json.loads((start / MANIFEST_FILE).read_bytes())["data"] if (start / STATE_FILE).is_file() else {}
        kind, eos = data.get("tokenizer"), data.get("eos_id")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "file", None
    return (kind, eos) if isinstance(kind, str) and type(eos) is int else ("file", None)


def pretrained(start: Path) -> First:
    """Round 0 with the numbers of a folder, see load_pretrained: momentum is zero and nothing was applied."""

    def first(model: nn.Module, draft: RunManifest) -> tuple[RunState, Sequence[str]]:
        notes = load_pretrained(model, start)
        return initial_state(to_flat(model), draft.average), notes

    return first


def write_start(manifest: RunManifest, first: First, run_dir: Path) -> Path:
    """The state of round 0 into the checkpoints of the run directory; its folder. Raises ConfigError, LocalFault."""
    model = run_model(manifest.model)
    state, root = first(model, manifest)[0], bytes.fromhex(manifest.model.initial_root)
    if state_root(state, manifest.average.chunk_coords) != root:
        raise ConfigError("the numbers that the run begins with changed while it was made; try again")
    with tempfile.TemporaryDirectory(prefix=".start-", dir=run_dir) as scratch:
        exporter_of(run_dir, manifest, model, {}, None).write(Path(scratch), 0, state, root)
        return Path(LocalCheckpoints(run_dir / FOLDER).publish(0, Path(scratch)).location)
