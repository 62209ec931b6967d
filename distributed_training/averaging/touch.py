"""Is a reducer's own line dead? Then its output would be one that nobody can fetch, on a chain that it still reaches.

The answer decides only whether our hash goes on chain; what others make of the chain does not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress

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
        self.dead = False  # most of what we sent failed, and nobody answers
        self._others = frozenset(spec.reducer for spec in plan.slices) - {own.reducer}
        self._heard: set[bytes] = set()
        self._silent: set[bytes] = set()
        self._sent: set[bytes] = set()
        self._failed: set[bytes] = set()
        self._changed = asyncio.Event()

    def sent(self, reducer: bytes) -> None:
        """All of our slice has left for it."""
        self._sent.add(reducer)
        self._failed.discard(reducer)
        self._changed.set()

    def took(self, reducer: bytes) -> None:
        """It acknowledged our slice."""
        self._heard.add(reducer)
        self.sent(reducer)

    def failed(self, reducer: bytes) -> None:
        """It could not be reached, its connection broke, or took no whole frame of ours in time. We try on."""
        self._sent.discard(reducer)
        self._failed.add(reducer)
        self._changed.set()

    def lost(self, reducer: bytes) -> None:
        """It acknowledged our slice and has fallen silent since."""
        self._heard.discard(reducer)
        self._sent.discard(reducer)
        self._silent.add(reducer)
        self._changed.set()

    async def proven(self, timeout_s: float) -> bool:
        """Wait until our slice has left for half of the other reducers: who can send its chunks can send its output.

        Who has failed with more than half of them, and is answered by none of these and no validator, is `dead`: False.
        False, too, when the time is over.
        """
        asking: asyncio.Task[frozenset[bytes]] | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while not self._half_sent():
                    if asking is None and 2 * len(lost := self._failed | self._silent) > len(self._others):
                        asking = asyncio.create_task(self._who_answers(lost), name="who answers")
                        asking.add_done_callback(lambda _: self._changed.set())
                    if asking is not None and asking.done():
                        self.dead = not asking.result()
                        return not self.dead
                    self._changed.clear()
                    await self._changed.wait()
                return True
        except TimeoutError:
            return False
        finally:
            if asking is not None:
                asking.cancel()

    async def revived(self, timeout_s: float) -> None:
        """Wait until our slice has left for half of the other reducers after all, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._half_sent():
                    self._changed.clear()
                    await self._changed.wait()

    def _half_sent(self) -> bool:
        return 2 * len(self._sent) >= len(self._others)

    def missed(self, delivered: Collection[bytes]) -> frozenset[bytes]:
        """Reducers that we are out of touch with, if they are more than the others; else none.

        In touch is who took our slice and beats still or has done its work; or, while it has not taken it, who
        delivered all of its own (`delivered`): then only our uplink is slow.
        """
        near = {k for k in self._others if k in self._heard or (k not in self._silent and k in delivered)}
        return self._others - near if 2 * len(near) < len(self._others) else frozenset()

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

        Ourselves where no validator can be dialled: who knows. Of two reducers neither is the majority: there the first
        validator that answers decides, and the other one, that is dead, is not waited for.
        """
        own = self._own.reducer
        wanted = {n.public_key for n in self._plan.voters}.union(missed) - {own}
        asked = {
            n.public_key: n.commitment.peer_key
            for n in self._plan.roster.neurons
            if n.commitment is not None and n.reachable_at is not None and n.public_key in wanted
        }
        tasks = {key: asyncio.create_task(self._answers(asked[key]), name="ask") for key in asked}
        answered, waiting = set[bytes](), set(tasks.values())
        try:
            while waiting and not (len(missed) == 1 and answered - set(missed)):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                answered = {key for key, task in tasks.items() if task.done() and task.result()}
        finally:
            for task in tasks.values():
                task.cancel()
        unknown = frozenset() if asked.keys() - missed else frozenset([own])
        return unknown | answered

    async def _answers(self, peer_key: bytes) -> bool:
        """Waits no longer than half of the time there is: who then publishes must be seen on chain by who decides."""
        try:
            async with asyncio.timeout(self._clock.seconds_until(self._decide_block) / 2):
                await self._slices.ping(peer_key, self._plan)
        except (NetworkFault, PeerFault, TimeoutError):
            return False
        return True
