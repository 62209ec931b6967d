"""Who goes first on our line: our own chunks, then slices that a round waits for, then what others fetch at leisure.

The last are held to a rate of their own, whether the line has a cap (`network.line`) or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_training.network.base import Stream
from distributed_training.network.budgets import Bucket
from distributed_training.network.line import Rank, ranked

LEAST_BYTES_PER_S = 1 << 20
BURST_BYTES = 4 << 20
PART_BYTES = 1 << 16  # of a frame in one turn: a stream of small frames gets as much of the line as one of large ones
YIELD = 8  # while we send what our own round needs, others get this part of their rate


class Uplink:
    """For snapshots, pages, files, and slices that somebody else reduced; all peers together. Nobody is refused here:
    a frame waits for its turns, and its stream's deadline is for the peer, not for that."""

    def __init__(self) -> None:
        self._bucket: Bucket | None = None
        self._ours = 0
        self._order = asyncio.Lock()  # first come, first served: each stream has one part of a frame in it

    def limit(self, bytes_per_s: float) -> None:
        """From now on at most this much; before, there is no limit."""
        self._bucket = Bucket(BURST_BYTES, bytes_per_s)

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

    async def turn(self, size: int) -> None:
        """Wait until a frame of so many bytes may go."""
        while self._bucket is not None and size > 0:
            part = min(size, PART_BYTES)
            async with self._order:
                await asyncio.sleep(self._bucket.owe(part * (YIELD if self._ours else 1)))
            size -= part
