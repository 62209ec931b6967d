"""What a reducer has received for one slice of one round."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from distributed_training.averaging.codecs.base import Chunk
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.shelf import Shelf
from distributed_training.protocol.types import SliceSpec, WorkRecord


@dataclass(slots=True)
class Inbox:
    """Chunks by sender. `spec.reducer` is ourselves, also where we stand in for another."""

    plan: RoundPlan
    spec: SliceSpec
    expected: frozenset[bytes]  # public keys of the senders it waits for
    works: dict[bytes, WorkRecord] = field(default_factory=dict)
    chunks: dict[bytes, dict[int, Chunk]] = field(default_factory=dict)
    shelves: dict[bytes, Shelf] = field(default_factory=dict)  # where chunks lie that others sent
    shown: dict[bytes, bytes] = field(default_factory=dict)  # by who sent, not ours: the digests, as they came
    closed: bool = False
    needed: bool = True  # False: we stand in, and nobody has missed the reducer yet
    spared: bool = False  # we stand in, and the reducer has done its work
    published: bool = False  # the output's hash is on chain
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # published, or given up
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _counts: Counter[int] = field(default_factory=Counter)  # of expected senders that gave a chunk
    _whole: list[int] = field(default_factory=list)  # chunks that all of them gave, and nobody has asked for
    _heard_s: dict[bytes, float] = field(default_factory=dict)  # loop time of a sender's newest frame
    _owing: set[bytes] = field(init=False)  # expected senders that have not delivered every chunk

    def __post_init__(self) -> None:
        self._owing = set(self.expected)

    def put(self, key: bytes, work: WorkRecord, chunks: Mapping[int, Chunk]) -> None:
        """Checked chunks of one sender, ourselves included."""
        self.works[key] = work
        held = self.chunks.setdefault(key, {})
        if key in self.expected:
            new = chunks.keys() - held.keys()
            self._counts.update(new)
            self._whole += [chunk for chunk in new if self._counts[chunk] == len(self.expected)]
        held.update(chunks)
        if len(held) == self.spec.last_chunk - self.spec.first_chunk:
            self._owing.discard(key)
        self.hear(key)
        self._changed.set()

    def place(self, key: bytes, chunk: int, data: bytes) -> bytes:
        """The bytes that a sender committed to for a chunk, to stay as long as the inbox: the same ones always."""
        if key not in self.shelves:
            self.shelves[key] = Shelf(self.plan.layout, self.plan.uplink, self.spec)
        return self.shelves[key].put(chunk, data)

    def drop(self) -> None:
        """All chunks: nobody reduces them any more."""
        self.chunks.clear()
        self.shelves.clear()

    def hear(self, key: bytes) -> None:
        """A frame of a sender has come."""
        self._heard_s[key] = asyncio.get_running_loop().time()

    def has(self, key: bytes, chunk: int, data: bytes) -> bool:
        """Are exactly these bytes in?"""
        held = self.chunks.get(key, {}).get(chunk)
        return held is not None and held.data == data

    async def whole(self) -> list[int]:
        """Chunks that every expected sender has given; each once, as soon as that is so."""
        while not self._whole:
            self._changed.clear()
            await self._changed.wait()
        found, self._whole = sorted(self._whole), []
        return found

    def need(self) -> None:
        """Somebody misses the reducer that we stand in for. Of no effect for our own slice."""
        if not self.needed:
            self.needed = True
            self._changed.set()

    def spare(self) -> None:
        """The reducer that we stand in for has done its work: nobody needs ours."""
        self.spared = True
        self._changed.set()

    def settle(self, *, published: bool) -> None:
        self.published = published
        self.settled.set()

    def missing(self) -> list[bytes]:
        """Expected senders that have not delivered every chunk of the slice."""
        return sorted(self._owing)

    @property
    def wanted(self) -> bool:
        """Does anybody need the slice from us?"""
        return self.needed and not self.spared

    @property
    def held(self) -> int:
        """Chunks of all senders together."""
        return sum(map(len, self.chunks.values()))

    async def silence(self, timeout_s: float, quiet_s: float) -> bool:
        """True: nobody who has not delivered every chunk was heard for `quiet_s`. False: all have, or the time is over.
        Chunks are taken afterwards too.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._owing:
            quiet_at = quiet_s + max(self._heard_s.get(key, began) for key in self._owing)
            if (now := loop.time()) >= min(quiet_at, began + timeout_s):
                return now < began + timeout_s
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(quiet_at, began + timeout_s)):
                    await self._changed.wait()
        return False

    async def wait(self, timeout_s: float) -> bool:
        """Until everybody expected has delivered, or the time is over; then nothing more is taken.

        False: nobody needs the slice from us.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not self.spared and (not self.needed or self._owing):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self.closed = True
        return self.wanted
