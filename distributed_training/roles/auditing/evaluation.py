"""Held-out loss of the public state; the same sequences on every node."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from distributed_training.errors import DataUnavailable
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Evaluation, Fault
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.parts import TrainingThread
from distributed_training.training.device import out_of_memory
from distributed_training.training.inner import InnerLoop
from distributed_training.training.outer import RunState

log = logging.getLogger(__name__)


class Evaluator:
    def __init__(
        self,
        manifest: RunManifest,
        training: TrainingThread,
        loop: InnerLoop,
        read: Callable[[], NDArray[np.int64]],
        metrics: Metrics,
    ) -> None:
        """read: the held-out sequences; called in the training thread when they are needed, maybe over a network."""
        self._batch_size, self._training, self._loop = manifest.data.batch_size, training, loop
        self._read, self._metrics = read, metrics
        self._sequences: NDArray[np.int64] | None = None
        self._trouble = Ongoing(log, "the held-out loss is not measured", "it is measured again", logging.ERROR)
        self.losses: dict[int, float] = {}  # by round, of this process

    async def evaluate(self, state: RunState, round_index: int) -> float | None:
        """Loss in nats per token of the state after `round_index` (-1: the initial state).

        None when it cannot be measured here. Raises LocalFault when it is stopped.
        """

        def work() -> float:
            if self._sequences is None:
                self._sequences = self._read()
            return self._loop.evaluate(
                state.params, self._sequences, self._batch_size, should_stop=lambda: self._training.stopping
            )

        try:
            loss = await self._training.run(work)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            await self._training.run(self._loop.shrink)
            self._tell(round_index, str(error) or "out of memory")
            return None
        except DataUnavailable as error:
            self._tell(round_index, str(error), again=False)
            return None
        self._trouble.end()
        self._metrics.emit(Evaluation(heldout_loss=loss), round=round_index)
        self.losses[round_index] = loss
        return loss

    def _tell(self, round_index: int, detail: str, *, again: bool = True) -> None:
        """again: an event also where it goes on from the last round."""
        if self._trouble.begin(f"round {round_index}: {detail}") or again:
            self._metrics.emit(Fault(what="evaluation", detail=detail), round=round_index)
