"""How good a published state is: held-out loss as the run itself measures it."""

from __future__ import annotations

import torch

from distributed_training.data.base import PageSource
from distributed_training.data.loader import heldout_sequences
from distributed_training.errors import ConfigError, said
from distributed_training.operator.sample import State
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop


def available(device: str) -> str:
    """The device itself; for auto the best there is. Raises ConfigError for one that torch does not know, or that this
    machine does not have."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA asserts
        raise ConfigError(
            f"--device {device}: it cannot be used here ({said(error)[:200]}); give auto, cpu, cuda or mps"
        ) from None
    return device


def heldout_loss(state: State, source: PageSource, device: str) -> float:
    """Nats per token, as the run's own evaluation. Raises ConfigError for pages of another run, DataUnavailable."""
    manifest, data = state.manifest, state.manifest.data
    if source.sha256 != data.pages_sha256:
        raise ConfigError(
            f"pages: sha256 {source.sha256[:16]}, this checkpoint's run has {data.pages_sha256[:16]}; give "
            "--pages, or --run-dir, of that run"
        )
    sequences = heldout_sequences(source, state.tokenizer, data.sequence_length, data.heldout_sequences)
    return InnerLoop(state.model, manifest, device).evaluate(to_flat(state.model), sequences, data.batch_size)
