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
    device = chosen_device(config.device)
    return Engine(model, InnerLoop(model, manifest, device), TokenisedPages(source, tokenizer), tokenizer)


def chosen_device(name: str) -> str:
    """What `--device NAME` means here. Raises ConfigError for one that this machine has not got."""
    kind = name.partition(":")[0]
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise ConfigError(f"--device {name}: this torch ({torch.__version__}) finds none; use --device auto or cpu")
    if name != "auto":
        return name
    return "cuda" if there["cuda"] else "cpu"
