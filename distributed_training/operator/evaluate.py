"""How good a published state is: held-out loss as the run itself measures it."""

from __future__ import annotations

from distributed_training.data.base import PageSource
from distributed_training.data.loader import heldout_sequences
from distributed_training.errors import ConfigError
from distributed_training.operator.sample import State
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop


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
