"""One direction of our line: what goes first, how much at most, and how fast it was while it was busy.

Who has a home line shares it with others: a cap holds for all streams of the node together. Under it, bytes of a lower
rank wait for those of a higher one, but for an eighth of the line, so that nobody waits without end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum

from distributed_training.network.budgets import Bucket

SMALL_BYTES = 4096  # frames up to here never wait: a beat that is late costs a round; they are paid for afterwards
PART_BYTES = 1 << 16  # of a frame in one turn
PART_S = 0.05  # a turn is no longer than this, so that a slow line is shared finely too
LEAST_S = 1e-4  # that is waited for
BURST_S = 0.25  # of the cap at once, after a pause
LOWER = 8  # while a higher rank has bytes waiting, each lower one gets about this part of the line
OVERHEAD = 1.05  # bytes on the wire for each of ours: measured 1.03 to 1.05 (libp2p's frames, TCP and IP headers)


class Rank(IntEnum):
    """What goes first."""

    OWN = 0  # our own round: our chunks to the reducers
    ROUND = 1  # what a round of others waits for: a slice that we reduced
    LEISURE = 2  # everything else: states, pages, files, slices of others, chunks for audits


_rank: ContextVar[Rank] = ContextVar("rank", default=Rank.ROUND)


@contextmanager
def ranked(rank: Rank) -> Iterator[None]:
    """What the current task reads and writes in this block has that rank."""
    token = _rank.set(rank)
    try:
        yield
    finally:
        _rank.reset(token)


class Lane:
    """One direction. Until `limit` is called nobody waits; the rate is measured from the first byte on."""

    def __init__(self) -> None:
        self.rate = Rate()
        self.part = 0  # bytes in one turn under the cap; 0: no cap
        self.waited_s = 0.0  # by all bytes together, for the cap
        self._bucket: Bucket | None = None
        self._waiting: dict[Rank, deque[tuple[float, asyncio.Future[None]]]] = {rank: deque() for rank in Rank}
        self._owed = dict.fromkeys(Rank, 0.0)  # bytes that a rank may pass although a higher one waits
        self._timer: asyncio.TimerHandle | None = None

    def limit(self, bytes_per_s: float) -> None:
        """From now on at most so many bytes/s on the wire."""
        self.part = max(1024, min(PART_BYTES, int(bytes_per_s * PART_S)))
        self._bucket = Bucket(max(self.part, bytes_per_s * BURST_S), bytes_per_s)

    def pay(self, size: int) -> None:
        """A small frame passes at once; those that wait, wait longer for it."""
        if self._bucket is not None:
            self._bucket.owe(size * OVERHEAD)

    async def turn(self, size: int) -> float:
        """Wait until a part of a frame (at most `part` bytes) may pass; how many seconds it took."""
        if self._bucket is None:
            return 0.0
        if not any(self._waiting.values()) and self._bucket.owe(0) <= LEAST_S:
            self._bucket.owe(size * OVERHEAD)
            return 0.0
        loop = asyncio.get_running_loop()
        began, passing = loop.time(), loop.create_future()
        self._waiting[_rank.get()].append((size * OVERHEAD, passing))
        self._pump()
        await passing
        waited = loop.time() - began
        self.waited_s += waited
        return waited

    def _pump(self) -> None:
        """Let pass what may; come again when more may."""
        assert self._bucket is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (rank := self._next()) is not None:
            if (wait_s := self._bucket.owe(0)) > LEAST_S:
                self._timer = asyncio.get_running_loop().call_later(wait_s, self._pump)
                return
            size, passing = self._waiting[rank].popleft()
            if passing.done():  # its stream ended while it waited
                continue
            self._bucket.owe(size)
            self._account(rank, size)
            passing.set_result(None)

    def _next(self) -> Rank | None:
        """The highest rank that waits, unless a lower one has been passed over long enough."""
        waiting = [rank for rank in Rank if self._waiting[rank]]
        due = [rank for rank in waiting[1:] if self._owed[rank] >= self._waiting[rank][0][0]]
        return due[0] if due else next(iter(waiting), None)

    def _account(self, rank: Rank, size: float) -> None:
        waiting = [r for r in Rank if self._waiting[r]]
        if any(r < rank for r in waiting):
            self._owed[rank] -= size
        for lower in waiting:
            if lower > rank:
                self._owed[lower] += size / (LOWER - 1)
        for idle in set(Rank) - set(waiting) - {rank}:
            self._owed[idle] = 0.0


SAMPLE_S, SAMPLE_BYTES = 0.5, 1 << 20  # of work in one sample, at least
SAMPLES = 32  # that are remembered


class Rate:
    """How fast bytes moved while at least one frame was on its way: samples of half a second of such work and a
    mebibyte at least, of which the upper quartile counts, since slow peers make single ones slow and never fast."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._moving, self._since = 0, 0.0
        self._busy_s, self._bytes = 0.0, 0

    @contextmanager
    def moving(self, size: int) -> Iterator[None]:
        """Around the moving of a frame of so many bytes; small ones say nothing."""
        if size <= SMALL_BYTES:
            yield
            return
        if self._moving == 0:
            self._since = asyncio.get_running_loop().time()
        self._moving += 1
        try:
            yield
            self._bytes += size
        finally:
            self._tally()
            self._moving -= 1

    def _tally(self) -> None:
        now = asyncio.get_running_loop().time()
        self._busy_s, self._since = self._busy_s + now - self._since, now
        if self._busy_s >= SAMPLE_S and self._bytes >= SAMPLE_BYTES:
            self._samples.append(self._bytes / self._busy_s)
            self._busy_s, self._bytes = 0.0, 0

    @property
    def bytes_per_s(self) -> float | None:
        """None: not enough has moved yet."""
        ordered = sorted(self._samples)
        return ordered[len(ordered) * 3 // 4] if ordered else None


class Line:
    """Both directions of one node."""

    def __init__(self) -> None:
        self.up, self.down = Lane(), Lane()

    def limit(self, up_bytes_per_s: float | None, down_bytes_per_s: float | None) -> None:
        """Caps for all streams together, on the wire. None: none."""
        if up_bytes_per_s is not None:
            self.up.limit(up_bytes_per_s)
        if down_bytes_per_s is not None:
            self.down.limit(down_bytes_per_s)
