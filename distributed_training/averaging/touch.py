"""Is a reducer's own line cut? Then its output would be one that nobody can fetch, on a chain that it still reaches.

The answer decides only whether our hash goes on chain; what others make of the chain does not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from distributed_training.averaging.collect import Collector
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.protocol.types import SliceSpec


class Touch:
    """Which other reducers we are in touch with, in one round; and, if they are too few, what else speaks for us."""

    def __init__(
        self,
        plan: RoundPlan,
        own: SliceSpec,
        decide_block: int,
        slices: Slices,
        collector: Collector,
        clock: BlockClock,
    ) -> None:
        """decide_block: until then the others' hashes are waited for; a hash put on chain then is there by s+X."""
        self._plan, self._own, self._decide_block = plan, own, decide_block
        self._slices, self._collector, self._clock = slices, collector, clock
        self._heard: set[bytes] = set()
        self._silent: set[bytes] = set()

    def took(self, reducer: bytes) -> None:
        """It acknowledged our slice."""
        self._heard.add(reducer)

    def lost(self, reducer: bytes) -> None:
        """It acknowledged our slice and has fallen silent since."""
        self._heard.discard(reducer)
        self._silent.add(reducer)

    def missed(self, delivered: Collection[bytes]) -> frozenset[bytes]:
        """Reducers that we are out of touch with, if they are more than the others; else none.

        In touch is who took our slice and beats still or has done its work; or, while it has not taken it, who
        delivered all of its own (`delivered`): then only our uplink is slow.
        """
        others = {spec.reducer for spec in self._plan.slices} - {self._own.reducer}
        near = {key for key in others if key in self._heard or (key not in self._silent and key in delivered)}
        return frozenset(others - near) if 2 * len(near) < len(others) else frozenset()

    async def cut_off(self, delivered: Collection[bytes]) -> bool:
        """Called at the cut-off by a reducer that lacks chunks. True: its slice is better left to its backup.

        That is: it is out of touch with most reducers, one of these puts a hash on chain, so lives, and either no
        validator answers us, or the reducer does: then it is we who slept. A lone survivor sees no hash, and who is
        on the validators' side of a split network hears them: both publish.
        """
        missed = self.missed(delivered)
        if not missed:
            return False
        answering = await self._who_answers(missed)
        woken = missed & answering if len(missed) > 1 else frozenset[bytes]()  # of two, neither is the majority
        lives = woken if answering - missed else missed
        while lives:
            claims = await self._collector.wanted(self._plan, self._clock.head)
            if any(not claim.by_backup and claim.reducer in lives for claim in claims.values()):
                return True
            if self._clock.head >= self._decide_block:
                return False
            await self._clock.reached(self._clock.head + 1)
        return False

    async def _who_answers(self, missed: Collection[bytes]) -> frozenset[bytes]:
        """Public keys of those of `missed` and of the validators that say anything within a stall time.

        Ourselves where no validator can be dialled: who knows.
        """
        own = self._own.reducer
        wanted = {n.public_key for n in self._plan.voters}.union(missed) - {own}
        asked = {
            n.public_key: n.commitment.peer_key
            for n in self._plan.roster.neurons
            if n.commitment is not None and n.reachable_at is not None and n.public_key in wanted
        }
        tasks = {key: asyncio.create_task(self._answers(asked[key]), name="ask") for key in asked}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
        unknown = frozenset() if asked.keys() - missed else frozenset([own])
        return unknown | {key for key, task in tasks.items() if task.result()}

    async def _answers(self, peer_key: bytes) -> bool:
        """Waits no longer than there is time to publish afterwards."""
        try:
            async with asyncio.timeout(self._clock.seconds_until(self._decide_block)):
                await self._slices.ping(peer_key, self._plan)
        except (NetworkFault, PeerFault, TimeoutError):
            return False
        return True
