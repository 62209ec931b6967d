"""The training of one round: begun for one assignment beacon, dropped when the chain decides on another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from distributed_training.errors import ChainFault
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.types import Round, StepRecord
from distributed_training.roles.mining.onward import Onward
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts
from distributed_training.training.outer import RunState

log = logging.getLogger(__name__)


class Training:
    """One worker's run in the training thread. Await `result`; `drop` leaves nothing behind. Not started twice."""

    def __init__(
        self,
        parts: Parts,
        worker: Worker,
        round_: Round,
        beacon: bytes,
        state: RunState,
        *,
        uid: int,
        max_steps: int,
        on_step: Callable[[StepRecord, float], None],
        onward: Onward | None = None,
    ) -> None:
        loop, last_s, end = asyncio.get_running_loop(), 0.0, round_.train_end_block
        self.round, self.beacon, self.onward = round_, beacon, onward
        self.began_s, self.ended_s = loop.time(), loop.time()
        self._parts, self._dropped, self._steps = parts, False, 0

        def stepped(step: StepRecord, seconds: float) -> None:
            nonlocal last_s
            last_s = seconds
            self._steps += 1
            loop.call_soon_threadsafe(on_step, step, seconds)

        def should_stop() -> bool:
            late = parts.clock.head >= end or loop.time() + last_s > parts.clock.due(end)
            return self._dropped or parts.training.stopping or late

        async def work() -> WorkResult:
            try:
                return await parts.training.run(lambda: worker.work(task))
            finally:
                self.ended_s = loop.time()

        task = WorkTask(round_.index, uid, beacon, state, max_steps, should_stop, stepped, onward)
        self._task = asyncio.create_task(work(), name="training")

    async def result(self) -> WorkResult:
        """Raises whatever the worker raised."""
        return await self._task

    async def drop(self) -> int:
        """Stop it before its next step; how many steps were done for nothing. Idempotent."""
        self._dropped = True
        await asyncio.gather(self._task, return_exceptions=True)
        return self._steps

    def close(self) -> None:
        """Stop it without waiting: it ends before its next step, and nobody asks for its result."""
        self._dropped = True
        self._task.cancel()


async def guessed_beacon(parts: Parts, round_: Round) -> bytes | None:
    """The assignment beacon as of the head, before s-B is final: it holds unless the chain is reorganised.

    None when it is too late to gain anything, or the chain gave no answer.
    """
    await parts.clock.reached(round_.roster_block)
    if parts.clock.finalized >= round_.roster_block:
        return None
    try:
        block_hash = await parts.chain.block_hash(round_.roster_block)
    except ChainFault as error:  # a head that was taken back, or a chain node behind ours
        log.debug("round %d: no early look at its beacon: %s", round_.index, error)
        return None
    return assignment_beacon(block_hash, parts.manifest.netuid, round_.index)
