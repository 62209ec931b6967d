"""The model and the data of a run on this machine, checked against the manifest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distributed_training.checkpoints.local import FOLDER, LocalCheckpoints
from distributed_training.data.base import PageSource, PinnedPages
from distributed_training.data.pages import check_trust
from distributed_training.data.tokenised import TokenisedPages
from distributed_training.data.tokens import TOKENIZER_FILE, Tokenizer, load_tokenizer
from distributed_training.errors import ConfigError, LocalFault, WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.joining.published import load_published
from distributed_training.settings.config import NodeConfig
from distributed_training.training.device import chosen_device, free_bytes, no_room, out_of_memory, rank_device
from distributed_training.training.flat import load_flat, to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import run_model
from distributed_training.training.outer import RunState, initial_state, state_root
from distributed_training.training.prepare import prepare

if TYPE_CHECKING:
    from distributed_training.training.lockstep import Leader

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    model: torch.nn.Module
    loop: InnerLoop
    source: PageSource
    tokenizer: Tokenizer


def load_engine(config: NodeConfig, manifest: RunManifest, source: PinnedPages, team: Leader | None = None) -> Engine:
    """Model and data; refuses what the manifest does not name."""
    data = manifest.data
    tokenizer = load_tokenizer(data.tokenizer, config.run_dir / TOKENIZER_FILE, data.eos_id)
    if tokenizer.sha256 != data.tokenizer_sha256:
        raise ConfigError(
            f"tokenizer {data.tokenizer}: sha256 {tokenizer.sha256[:16]}..., the manifest asks for "
            f"{data.tokenizer_sha256[:16]}...; "
            + (
                f"copy the run's {TOKENIZER_FILE} to {config.run_dir}"
                if data.tokenizer == "file"
                else "install the version the run was made with"
            )
        )
    if source.sha256 != manifest.data.pages_sha256 or source.num_pages != manifest.data.num_pages:
        raise ConfigError(
            f"pages in {config.pages}: sha256 {source.sha256[:16]}..., the manifest asks for "
            f"{manifest.data.pages_sha256[:16]}...; copy the pages of this run there"
        )
    check_trust(source.missing_digests, manifest.data.page_trust)
    model = run_model(manifest.model)
    return Engine(model, inner_loop(config, model, manifest, team), TokenisedPages(source, tokenizer), tokenizer)


def first_state(model: nn.Module, manifest: RunManifest, run_dir: Path) -> RunState:
    """The state of round 0, as far as this machine has it: of the untouched `model`, or where the manifest names
    another one, what lies in the run directory of whoever made the run. All others get it from peers."""
    state = initial_state(to_flat(model), manifest.average)
    if state_root(state, manifest.average.chunk_coords).hex() == manifest.model.initial_root:
        return state
    del state  # one at a time
    store = LocalCheckpoints(run_dir / FOLDER)
    try:
        if (ref := store.find(0, None)) is not None:
            found = load_published(store, ref, manifest)
            load_flat(model, found.params)
            return found
    except (WireError, LocalFault) as error:
        log.warning("round 0 in %s cannot be used: %s", run_dir / FOLDER, error)
    return initial_state(to_flat(model), manifest.average)


def round_zero(manifest: RunManifest, run_dir: Path) -> RunState:
    """The state of round 0, built anew."""
    return first_state(run_model(manifest.model), manifest, run_dir)


def inner_loop(
    config: NodeConfig, model: torch.nn.Module, manifest: RunManifest, team: Leader | None = None
) -> InnerLoop:
    """Raises ConfigError for a device that cannot be used and a micro-batch larger than a step, LocalFault for a model
    that does not fit on the device."""
    device = chosen_device(config.device) if team is None else rank_device(config.device, 0)
    size = manifest.data.batch_size // (1 if team is None else team.size)
    if config.micro_batch is not None and config.micro_batch > size:
        what = f"{size} sequences" if team is None else f"{size} sequences for each process"
        raise ConfigError(f"--micro-batch {config.micro_batch}: a step of this run has {what}; give 1 to {size}")
    try:
        return InnerLoop(model, manifest, device, config.micro_batch, team, **choices(config))
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_room(device, error) from None


def choices(config: NodeConfig) -> dict[str, Any]:
    """Of the inner loop, by the names of its arguments: the same for all processes of a node."""
    return {
        "precision": config.precision,
        "compiled": config.compile,
        "recompute": config.checkpoint_activations,
    }


def prepared(config: NodeConfig, manifest: RunManifest, loop: InnerLoop) -> str:
    """What a step is, in words, once it was seen that it can be done. Raises LocalFault where it cannot."""
    free = free_bytes(str(loop.device)) if config.micro_batch is None else None
    if loop.device.type == "cpu":
        free = None if free is None else free // loop.team.size
    return prepare(loop, manifest.data.sequence_length, free)
