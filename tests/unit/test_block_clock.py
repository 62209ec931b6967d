from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from distributed_training.chain.base import Chain, Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault

BLOCK_S = 0.02


class ScriptedHeads:
    """A chain that answers each question for its head with the next of a list, and the last one for ever."""

    def __init__(self, heads: Iterable[Head | ChainFault]) -> None:
        self._heads = list(heads)
        self.asked = 0

    async def head(self) -> Head:
        self.asked += 1
        answer = self._heads[min(self.asked, len(self._heads)) - 1]
        if isinstance(answer, ChainFault):
            raise answer
        return answer


@asynccontextmanager
async def running(*heads: Head | ChainFault) -> AsyncIterator[BlockClock]:
    clock = BlockClock(cast(Chain, ScriptedHeads(heads)), BLOCK_S)
    task = asyncio.create_task(clock.run())
    try:
        yield clock
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_waits_end_when_the_block_is_there() -> None:
    async with running(Head(1, 0), Head(2, 0), Head(4, 2), Head(5, 3)) as clock:
        await asyncio.wait_for(clock.reached(3), 2)
        assert (clock.head, clock.finalized) >= (4, 2)
        await asyncio.wait_for(clock.final(3), 2)
        assert (clock.head, clock.finalized) == (5, 3)
        await clock.reached(5)
        await clock.final(1)


async def test_a_node_that_stood_still_knows_it() -> None:
    async with running(Head(90, 88), Head(93, 91), Head(94, 92)) as clock:
        await asyncio.wait_for(clock.reached(94), 2)
        assert clock.resumed_at == 0, "neither the first look nor a few blocks are a gap"
    async with running(Head(90, 88), Head(94, 92), Head(95, 93)) as clock:
        await asyncio.wait_for(clock.reached(95), 2)
        assert clock.resumed_at == 94


async def test_a_block_that_does_not_come_is_waited_for() -> None:
    async with running(Head(7, 5)) as clock:
        for wait in (clock.reached(8), clock.final(6)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait, 5 * BLOCK_S)


async def test_a_chain_that_cannot_be_reached_is_waited_for() -> None:
    async with running(ChainFault("no answer"), ChainFault("no answer"), Head(3, 1)) as clock:
        await asyncio.wait_for(clock.reached(3), 2)
        assert clock.finalized == 1


async def test_another_error_is_not_swallowed() -> None:
    class Broken:
        async def head(self) -> Head:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await BlockClock(cast(Chain, Broken()), BLOCK_S).run()


async def test_all_who_wait_are_woken() -> None:
    async with running(Head(0, 0), Head(0, 0), Head(2, 2)) as clock:
        waits = [clock.reached(1), clock.reached(2), clock.final(1), clock.final(2)]
        await asyncio.wait_for(asyncio.gather(*waits), 2)


async def test_a_cancelled_wait_leaves_the_others_alone() -> None:
    async with running(Head(0, 0), *[Head(0, 0)] * 10, Head(2, 2)) as clock:
        gone, stays = asyncio.create_task(clock.reached(2)), asyncio.create_task(clock.reached(2))
        await asyncio.sleep(BLOCK_S / 5)
        gone.cancel()
        await asyncio.wait_for(stays, 2)
        assert gone.cancelled()


async def test_the_time_until_a_block_is_estimated_from_the_last_one_seen() -> None:
    clock = BlockClock(cast(Chain, ScriptedHeads([Head(10, 8)])), 100.0)
    task = asyncio.create_task(clock.run())
    await asyncio.wait_for(clock.reached(10), 2)
    assert clock.seconds_until(10) == clock.seconds_until(3) == 0.0
    assert 299.0 < clock.seconds_until(13) <= 300.0
    task.cancel()


async def test_a_late_block_is_due_now() -> None:
    async with running(Head(10, 8)) as clock:
        await asyncio.wait_for(clock.reached(10), 2)
        await asyncio.sleep(2 * BLOCK_S)
        assert clock.seconds_until(11) == 0.0
        assert 0.0 < clock.seconds_until(1000) <= 988 * BLOCK_S
