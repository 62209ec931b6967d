"""The model and the data of a run on this machine, checked against the manifest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distributed_training.data.base import PageSource
from distributed_training.data.tokens import Tokenizer, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.settings.config import NodeConfig
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model


@dataclass(frozen=True, slots=True)
class Engine:
    model: torch.nn.Module
    loop: InnerLoop
    source: PageSource
    tokenizer: Tokenizer


def load_engine(config: NodeConfig, manifest: RunManifest, source: PageSource) -> Engine:
    """Model and data; refuses what the manifest does not name."""
    tokenizer = load_tokenizer(manifest.data.tokenizer)
    if tokenizer.sha256 != manifest.data.tokenizer_sha256:
        raise ConfigError(
            f"tokenizer {manifest.data.tokenizer}: sha256 {tokenizer.sha256[:16]}..., "
            f"the manifest asks for {manifest.data.tokenizer_sha256[:16]}...; install the version the run was made with"
        )
    if source.sha256 != manifest.data.pages_sha256 or source.num_pages != manifest.data.num_pages:
        raise ConfigError(
            f"pages in {config.pages}: sha256 {source.sha256[:16]}..., the manifest asks for "
            f"{manifest.data.pages_sha256[:16]}...; copy the pages of this run there"
        )
    model = build_model(manifest.model.config, manifest.model.init_seed)
    device = _device(config.device)
    return Engine(model, InnerLoop(model, manifest, device), source, tokenizer)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
