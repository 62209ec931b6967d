"""The exchange of a round, begun as soon as its commitments are seen, kept only if finality decides on the same plan.

    head at s+D     plan as the head has it; `work` begins: scatter, reduce, gather
    each block      is s+D another block by now? who is in, with what? The same: nothing happens. Another plan: what was
                    sent and received is dropped, `work` begins anew
    s+D final       the plan is the chain's: `final` is set, and only from then on may anything go on chain

So a reorganisation costs what was moved until then, never the state: nothing is adopted before s+Y is final.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault
from distributed_training.metrics.events import Anew
from distributed_training.roles.follower import Follower, RoundStart
from distributed_training.roles.parts import Parts

log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[RoundPlan, asyncio.Event], Awaitable[T]]  # the plan; set when it is final


async def exchange(parts: Parts, follower: Follower, start: RoundStart, work: Work[T]) -> tuple[RoundPlan, T]:
    """The final plan and what `work` gave under it. Raises what `work` raises.

    `work` is cancelled and begun anew under another plan, so it leaves nothing behind; before its event is set it puts
    nothing on chain and takes nothing for settled.
    """
    clock = parts.clock
    await clock.seen(start.round.commit_block)
    under_way: _Begun[T] | None = None
    try:
        while True:
            since = clock.now
            final = since.finalized >= start.round.commit_block
            seen = await _seen(parts, follower, start, final, under_way)
            if seen is not None and (under_way is None or seen.plan.tag != under_way.plan.tag):
                if under_way is not None:
                    await under_way.drop()
                    before, now = len(under_way.plan.candidates), len(seen.plan.candidates)
                    parts.metrics.emit(Anew(candidates=before, now=now), round=start.round.index)
                under_way = _Begun(seen, work)
            elif seen is not None and under_way is not None:
                under_way.block_hash = seen.block_hash
            if final and under_way is not None:
                under_way.final.set()
                return under_way.plan, await under_way.task
            await _next_block(clock, since, None if under_way is None else under_way.task)
    finally:
        if under_way is not None:
            await under_way.drop()


@dataclass(frozen=True, slots=True)
class Seen:
    """A plan by a block s+D that need not be final."""

    block_hash: bytes
    plan: RoundPlan


class _Begun(Generic[T]):
    """`work` under one plan."""

    def __init__(self, seen: Seen, work: Work[T]) -> None:
        self.plan, self.block_hash, self.final = seen.plan, seen.block_hash, asyncio.Event()
        self.task = asyncio.ensure_future(work(seen.plan, self.final))

    async def drop(self) -> None:
        """End it and wait until it has. Idempotent."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def _seen(
    parts: Parts, follower: Follower, start: RoundStart, final: bool, former: _Begun[T] | None
) -> Seen | None:
    """The plan as the chain has s+D by now. None: it gave no answer, or has still the block of `former`."""
    block = start.round.commit_block
    try:
        # A final block is always read: the journal keeps it.
        if former is not None and not final and await parts.chain.block_hash(block) == former.block_hash:
            return None
        roster = await parts.chain.roster(block)
        return Seen(roster.block.hash, follower.plan_as_of(start, roster))
    except ChainFault as error:
        if final:
            raise
        # a head that was taken back, or a chain node behind ours
        log.debug("round %d: no early look at who is in: %s", start.round.index, error)
        return None


async def _next_block(clock: BlockClock, since: Head, task: asyncio.Future[T] | None) -> None:
    """Until the chain has moved on, or `task` has failed, which is raised."""
    moved = asyncio.ensure_future(clock.moved(since))
    try:
        await asyncio.wait({moved} if task is None else {moved, task}, return_when=asyncio.FIRST_COMPLETED)
        if task is not None and task.done():
            task.result()
        await moved
    finally:
        moved.cancel()
