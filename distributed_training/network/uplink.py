"""Who goes first on our line: our own chunks, then slices that a round waits for, then what others fetch at leisure.

The last are held to a rate of their own, whether the line has a cap (`network.line`) or not; so is what audits ask for,
beside them: a round's pay hangs on that, and who joins or fetches files must not keep it waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed_training.network.base import Stream
from distributed_training.network.budgets import Bucket
from distributed_training.network.line import Rank, ranked

LEAST_BYTES_PER_S = 1 << 20
BURST_BYTES = 4 << 20
PART_BYTES = 1 << 16  # of a frame in one turn: a stream of small frames gets as much of the line as one of large ones
YIELD = 8  # while we send what our own round needs, others get this part of their rate


class _Turns:
    """Of streams that share a rate. Until it is limited nobody waits."""

    def __init__(self) -> None:
        self.bucket: Bucket | None = None
        self._order = asyncio.Lock()  # first come, first served: each stream has one part of a frame in it

    async def turn(self, size: int, slow: Callable[[], bool]) -> None:
        while self.bucket is not None and size > 0:
            part = min(size, PART_BYTES)
            async with self._order:
                await asyncio.sleep(self.bucket.owe(part * (YIELD if slow() else 1)))
            size -= part


class Uplink:
    """For snapshots, pages, files, and slices that somebody else reduced; all peers together. Beside them, for what
    validators audit. Nobody is refused here: a frame waits for its turns, and its stream's deadline is for the peer,
    not for that."""

    def __init__(self) -> None:
        self._leisure, self._audits = _Turns(), _Turns()
        self._ours = 0

    def limit(self, bytes_per_s: float) -> None:
        """From now on at most this much for each of the two; before, there is no limit."""
        for turns in (self._leisure, self._audits):
            turns.bucket = Bucket(BURST_BYTES, bytes_per_s)

    @contextmanager
    def ours(self) -> Iterator[None]:
        """Around what we send for our own round."""
        self._ours += 1
        try:
            with ranked(Rank.OWN):
                yield
        finally:
            self._ours -= 1

    async def give(self, stream: Stream, frame: bytes, timeout_s: float) -> None:
        """Write a frame at leisure. Raises as `Stream.write`, whose deadline begins when it is its turn."""
        await self.turn(len(frame))
        with ranked(Rank.LEISURE):
            await stream.write(frame, timeout_s)

    async def show(self, stream: Stream, frame: bytes, timeout_s: float) -> None:
        """As `give`, to a validator that audits: a round waits for it."""
        await self.turn(len(frame), audits=True)
        await stream.write(frame, timeout_s)

    async def turn(self, size: int, *, audits: bool = False) -> None:
        """Wait until a frame of so many bytes may go."""
        await (self._audits if audits else self._leisure).turn(size, lambda: self._ours > 0)
