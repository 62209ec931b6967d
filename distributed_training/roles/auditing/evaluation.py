"""Held-out loss of the public state; the same sequences on every node."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.metrics.base import Metrics
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.parts import TrainingThread
from distributed_training.training.inner import InnerLoop, out_of_memory
from distributed_training.training.outer import RunState


class Evaluator:
    def __init__(
        self,
        manifest: RunManifest,
        training: TrainingThread,
        loop: InnerLoop,
        sequences: NDArray[np.int64],
        metrics: Metrics,
    ) -> None:
        self._batch_size, self._training, self._loop = manifest.data.batch_size, training, loop
        self._sequences, self._metrics = sequences, metrics

    async def evaluate(self, state: RunState, round_index: int) -> float | None:
        """Loss in nats per token of the state after `round_index` (-1: the initial state).

        None when it cannot be measured here. Raises LocalFault when it is stopped.
        """

        def work() -> float:
            return self._loop.evaluate(
                state.params, self._sequences, self._batch_size, should_stop=lambda: self._training.stopping
            )

        try:
            loss = await self._training.run(work)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            await self._training.run(self._loop.shrink)
            self._metrics.emit("fault", round=round_index, what="evaluation", detail=str(error) or "out of memory")
            return None
        self._metrics.emit("evaluation", round=round_index, heldout_loss=loss)
        return loss
