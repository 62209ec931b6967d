"""Overlap: the vectors at whose ends the audited round's trainings began, fetched a few at a time: each is as large as
all that its miner committed, and is held until its miner was looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distributed_training.protocol.rules.clock import bulk_timeout_s
from distributed_training.protocol.types import NO_ROOT
from distributed_training.roles.auditing.starts import is_whole
from distributed_training.roles.began import BeganReader, Origin
from distributed_training.roles.parts import Parts

if TYPE_CHECKING:
    from distributed_training.roles.auditing.looking import FinishedRound

HELD = 2  # at a time: one is looked at while the next one comes


class Origins:
    """Those of one round at a time."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        timeout_s = bulk_timeout_s(parts.manifest.timing, parts.clock.block_s)
        self._reader = BeganReader(parts.manifest, parts.peers, parts.verify, timeout_s)
        self._places = asyncio.Semaphore(HELD)
        self._holding: set[bytes] = set()
        self.tasks: dict[bytes, asyncio.Task[Origin | None]] = {}  # by public key, of those that are looked at
        self._for_others: set[bytes] = set()  # who was asked because of what others said
        self._given: dict[bytes, float] = {}  # of those that were asked for: the share of it that came

    def begin(self, done: FinishedRound, miners: Sequence[bytes], late: Callable[[], bool]) -> None:
        """Fetch for the replays of these miners, in their order. The caller closes."""
        self._places, self._holding, self._given = asyncio.Semaphore(HELD), set(), {}
        self._for_others = set()

        async def one(key: bytes) -> Origin | None:
            if done.works[key].began_at == NO_ROOT:
                return None
            await self._places.acquire()
            self._holding.add(key)
            origin = Origin(None, {}) if late() else await self.of(done, key)
            if origin is not None and done.former is not None and not late():
                self._given[key] = len(origin.chunks) / done.former.plan.layout.num_chunks
            return origin

        self.tasks = {key: asyncio.create_task(one(key), name="origin") for key in miners}

    def refused(self) -> frozenset[bytes]:
        """Who did not give all of it, nor did anybody else. Where nothing came from anybody it is our own line."""
        if len(self._given) > 1 and not any(self._given.values()):
            return frozenset()
        return frozenset(key for key, share in self._given.items() if share < 1.0)

    async def of(self, done: FinishedRound, key: bytes) -> Origin | None:
        """A miner's vector of the round before, of which chunks may be absent. None: its training began at the state,
        or we did not follow that round."""
        record, former, candidate = done.works[key], done.former, done.plan.candidate(key)
        if record.began_at == NO_ROOT or former is None or candidate is None:
            return None
        if former.plan.candidate(key) is None:
            return Origin(None, {})
        origin = await self._reader.ask(former.plan, candidate, former.works.get(key))
        lacking = [c for c in range(former.plan.layout.num_chunks) if c not in origin.chunks]
        if lacking and origin.record is not None:  # who had it sent by the miner gives the rest
            sent = self._p.butterfly.sent
            more = await sent.fetch(former.plan, candidate, origin.record, lacking, onward=True)
            origin = replace(origin, chunks=origin.chunks | more)
        return origin

    async def for_another(self, done: FinishedRound, key: bytes) -> Origin | None:
        """As `of`, where another validator says that its log fails. The miner gives us its vector a few times a round
        (`service.MAX_PROBES`): whatever others say, we ask for it once, and the rest is for what the beacon drew."""
        if done.works[key].began_at == NO_ROOT:
            return None
        own = self.here(done, key)
        if own is not None and is_whole(done.former, own):
            return own
        if key in self._for_others:
            return Origin(None, {})
        self._for_others.add(key)
        return await self.of(done, key)

    def here(self, done: FinishedRound, key: bytes) -> Origin | None:
        """What came, once its task has ended; of who is not replayed, what is known without asking."""
        task = self.tasks.get(key)
        if task is not None and task.done() and not task.cancelled() and task.exception() is None:
            return task.result()
        former = done.former
        if former is None or done.works[key].began_at == NO_ROOT:
            return None
        return Origin(former.works.get(key), {})

    def looked_at(self, key: bytes) -> None:
        """Its memory is needed for another one."""
        self.tasks.pop(key, None)
        if key in self._holding:
            self._holding.discard(key)
            self._places.release()

    def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        self.tasks = {}
