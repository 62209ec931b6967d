"""What is begun at the head is kept only under the plan that finality decides on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from samples import RUN

from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault
from distributed_training.protocol.types import BlockRef, Roster
from distributed_training.roles.exchange import exchange
from distributed_training.roles.follower import RoundStart

ROUND = RUN.round(0)
D, F = ROUND.commit_block, RUN.timing.finality


@dataclass
class Scene:
    """A chain whose block s+D is what `blocks` says at each head, a follower that makes a plan of its hash alone."""

    blocks: Callable[[Head], bytes]
    act_on_head: bool = True
    now: Head = field(default_factory=lambda: Head(0, 0))
    asked: list[Head] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = BlockClock(cast(Any, self), 0.01, act_on_head=self.act_on_head)

    async def head(self) -> Head:
        return self.now

    async def block_hash(self, number: int) -> bytes:
        return self.blocks(self.now)

    async def roster(self, block: int) -> Roster:
        self.asked.append(self.now)
        return Roster(BlockRef(block, self.blocks(self.now)), ())

    def plan_as_of(self, start: RoundStart, roster: Roster) -> RoundPlan:
        plan = SimpleNamespace(tag=roster.block.hash[:1], candidates=(), name=roster.block.hash.decode())
        return cast(RoundPlan, plan)

    async def work(self, plan: RoundPlan, final: asyncio.Event) -> str:
        name = cast(Any, plan).name
        self.begun.append(name)
        try:
            await final.wait()
        except asyncio.CancelledError:
            self.dropped.append(name)
            raise
        return f"{name} at {self.now.finalized}"

    async def exchanged(self, *heads: Head, work: Any = None) -> tuple[RoundPlan, Any]:
        """What comes of it while the chain goes through these heads."""
        emit = SimpleNamespace(emit=lambda event, round: self.told.append(event))
        parts = cast(Any, SimpleNamespace(clock=self.clock, chain=self, metrics=emit))
        start = RoundStart(ROUND, Roster(BlockRef(0, b""), ()), b"")
        clock = asyncio.create_task(self.clock.run())
        running = asyncio.create_task(exchange(parts, cast(Any, self), start, work or self.work))
        try:
            for self.now in heads:
                await asyncio.sleep(0.015)
            return await asyncio.wait_for(running, 2)
        finally:
            running.cancel()
            clock.cancel()
            await asyncio.gather(running, clock, return_exceptions=True)


HEADS = [Head(n, n - F) for n in range(D - 1, D + F + 1)]


async def test_it_begins_at_the_head_and_ends_when_that_is_final() -> None:
    scene = Scene(lambda head: b"a")
    _, result = await scene.exchanged(*HEADS)
    assert result == f"a at {D}" and scene.begun == ["a"] and scene.dropped == [] and scene.told == []
    assert scene.asked[0].number == D and len(scene.asked) == 2, "once at the head, once when it is final"


async def test_who_does_not_act_on_the_head_begins_when_it_is_final() -> None:
    scene = Scene(lambda head: b"a", act_on_head=False)
    await scene.exchanged(*HEADS)
    assert scene.begun == ["a"] and scene.asked[0].finalized == D


async def test_another_block_with_the_same_work_in_it_drops_nothing() -> None:
    scene = Scene(lambda head: b"a1" if head.number == D else b"a2")
    _, result = await scene.exchanged(*HEADS)
    assert scene.begun == ["a1"] and scene.dropped == [] and result == f"a1 at {D}"


async def test_a_reorganised_head_begins_it_anew_a_block_later_and_says_so() -> None:
    scene = Scene(lambda head: b"b" if head.number == D else b"a")
    plan, result = await scene.exchanged(*HEADS)
    assert scene.begun == ["b", "a"] and scene.dropped == ["b"] and result == f"a at {D}"
    assert cast(Any, plan).name == "a" and [type(e).__name__ for e in scene.told] == ["Anew"]


async def test_finality_may_decide_otherwise_at_the_last_moment_and_nothing_of_the_other_plan_is_kept() -> None:
    scene = Scene(lambda head: b"a" if head.finalized >= D else b"b")
    _, result = await scene.exchanged(*HEADS)
    assert scene.begun == ["b", "a"] and scene.dropped == ["b"] and result == f"a at {D}"


async def test_a_head_that_never_becomes_final_puts_nothing_on_chain() -> None:
    scene = Scene(lambda head: b"a")
    with pytest.raises(TimeoutError):
        await scene.exchanged(*(Head(n, D - 1) for n in range(D, D + 20)))
    assert scene.begun == ["a"] and scene.dropped == ["a"], "it was under way, its event was never set"


async def test_a_chain_that_knows_no_such_head_is_asked_again() -> None:
    def blocks(head: Head) -> bytes:
        if head.finalized < D - 1:
            raise ChainFault("no such block")
        return b"a"

    scene = Scene(blocks)
    _, result = await scene.exchanged(*HEADS)
    assert scene.begun == ["a"] and result == f"a at {D}"


async def test_what_fails_is_raised_at_once() -> None:
    async def work(plan: RoundPlan, final: asyncio.Event) -> str:
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        await Scene(lambda head: b"a").exchanged(Head(D, D - F), work=work)
