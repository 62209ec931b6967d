"""What is gathered before s+X is final, where the chain's head gives no answer or is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from samples import group, reduced

from distributed_training.averaging.collect import Collector, Early
from distributed_training.averaging.combine import SliceOutput
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault
from distributed_training.protocol.rules.membership import Claim

G = group(3)
X, F = G.plan.round.output_block, 2
OUTPUTS = reduced(G)
OWN = {s.index: Claim(s.reducer, bytes([s.index]) * 32, by_backup=False) for s in G.plan.slices}
BY_BACKUP = OWN | {0: Claim(G.plan.slices[1].reducer, bytes([1]) * 32, by_backup=True)}


class Here:
    """All slices are on our own disk."""

    async def load(self, plan: Any, index: int, reducer: bytes, output_hash: bytes) -> SliceOutput:
        return OUTPUTS[index]

    def load_record(self, plan: Any, index: int, reducer: bytes, output_hash: bytes) -> Any:
        return SimpleNamespace(backup=bytes(31) + b"b")


class Scene(Collector):
    """Claims as of each block and head; None: the chain knows no such block."""

    def __init__(self, claims: Any) -> None:
        self.now, self.claims, self.shown = Head(0, 0), claims, list[set[int]]()
        self.clock = BlockClock(cast(Any, self), 0.01)
        super().__init__(cast(Any, Here()), cast(Any, SimpleNamespace(neurons=())), cast(Any, self), self.clock, b"")

    async def head(self) -> Head:
        return self.now

    async def wanted(self, plan: Any, block: int) -> dict[int, Claim]:
        found = self.claims(block, self.now)
        if found is None:
            raise ChainFault("no such block")
        return dict(found)

    async def _show(self, held: Mapping[int, SliceOutput]) -> None:
        self.shown.append(set(held))

    async def gathered(self) -> dict[int, SliceOutput]:
        clock = asyncio.create_task(self.clock.run())
        gathering = asyncio.create_task(self.gather(G.plan, X + 20, Early(X + 10, self._show)))
        try:
            for number in range(G.plan.round.commit_block, X + F + 2):
                self.now = Head(number, number - F)
                await asyncio.sleep(0.015)
            return await asyncio.wait_for(gathering, 2)
        finally:
            clock.cancel()
            gathering.cancel()
            await asyncio.gather(clock, gathering, return_exceptions=True)


async def test_a_block_s_x_that_the_head_does_not_give_leaves_all_to_finality() -> None:
    """What the block before it said is not what s+X says: neither fetched by it nor shown as all there is."""

    def claims(block: int, head: Head) -> Mapping[int, Claim] | None:
        if block < X:
            return BY_BACKUP
        return OWN if head.finalized >= X else None

    scene = Scene(claims)
    assert set(await scene.gathered()) == {0, 1, 2}
    assert scene.shown == [], "with all of final s+X the map is the last one, not an early one"


async def test_claims_that_vanish_with_the_head_are_dropped_and_said_again() -> None:
    def claims(block: int, head: Head) -> Mapping[int, Claim]:
        return {0: OWN[0], 1: OWN[1]} if head.finalized >= X else OWN

    scene = Scene(claims)
    assert set(await scene.gathered()) == {0, 1}
    assert scene.shown == [{0, 1, 2}, {0, 1}]
