"""The model and the data of a run on this machine, checked against the manifest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distributed_training.data.base import PageSource, PinnedPages
from distributed_training.data.pages import check_trust
from distributed_training.data.tokenised import TokenisedPages
from distributed_training.data.tokens import TOKENIZER_FILE, Tokenizer, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.start import take_start
from distributed_training.settings.config import NodeConfig
from distributed_training.training.device import chosen_device, no_room, out_of_memory
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import run_model


@dataclass(frozen=True, slots=True)
class Engine:
    model: torch.nn.Module
    loop: InnerLoop
    source: PageSource
    tokenizer: Tokenizer


def load_engine(config: NodeConfig, manifest: RunManifest, source: PinnedPages) -> Engine:
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
    take_start(model, manifest, config.run_dir)
    return Engine(model, inner_loop(config, model, manifest), TokenisedPages(source, tokenizer), tokenizer)


def inner_loop(config: NodeConfig, model: torch.nn.Module, manifest: RunManifest) -> InnerLoop:
    """Raises ConfigError for a device that cannot be used and a micro-batch larger than a step, LocalFault for a model
    that does not fit on the device."""
    size, device = manifest.data.batch_size, chosen_device(config.device)
    if config.micro_batch is not None and config.micro_batch > size:
        raise ConfigError(
            f"--micro-batch {config.micro_batch}: a step of this run has {size} sequences; give 1 to {size}"
        )
    try:
        return InnerLoop(model, manifest, device, config.micro_batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_room(device, error) from None
