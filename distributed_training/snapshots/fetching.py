"""Fetching one state from several donors at once, every chunk checked as it arrives, every byte kept as it is checked.

The root is known beforehand (the majority's, read from the chain). One stream per donor with a window of requests in
flight, so that latency costs nothing; which donor gives what is decided by `Pieces`. A donor that lies is never asked
again; one that is silent, slow or gone gives less, and is asked again later. It ends when the state is whole, when
nobody is left to ask, or when nothing has come for `patience_s`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing
from distributed_training.snapshots.header import (
    ABSENT,
    BUSY,
    HELD,
    METHOD,
    RANGE,
    ROUND,
    Header,
    Shape,
    decode_header,
)
from distributed_training.snapshots.pieces import Pieces
from distributed_training.snapshots.states import Fetched, StateFiles

log = logging.getLogger(__name__)

MAX_DONORS = 8  # at a time
OPEN_TIMEOUT_S = 10.0
HEADER_TIMEOUT_S = 60.0  # the donor may have to make it first
PIECE_TIMEOUT_S = 30.0  # a donor that is slower than a piece in this time is of no use
MAX_WINDOW, MIN_WINDOW = 16, 2  # requests in flight per donor
IN_FLIGHT_S = 1.0  # how much of a donor's time its window should hold
TURN_S = 60.0  # of one donor while others wait: slow ones cannot hold all places
REPORT_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is fetched; all of it known before the first byte."""

    round: int
    root: bytes
    shape: Shape
    max_header_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is. `resumed_bytes` were on disk before it began."""

    done_bytes: int
    total_bytes: int
    resumed_bytes: int
    seconds: float
    by_donor: dict[bytes, int]  # peer key -> checked bytes it gave

    @property
    def bytes_per_s(self) -> float:
        return (self.done_bytes - self.resumed_bytes) / self.seconds if self.seconds > 0 else 0.0


class OpenStream(Protocol):
    """Open a stream to a peer and say what is asked for (`PeerBook.open`)."""

    async def __call__(self, peer_key: bytes, method: str, payload: bytes, timeout_s: float) -> Stream: ...


async def fetch_snapshot(
    open_stream: OpenStream,
    donors: Sequence[bytes],
    wanted: Wanted,
    files: StateFiles,
    *,
    patience_s: float,
    retry_s: float,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Make `files` hold the snapshot of `wanted.round`. Raises NetworkFault when nobody gives it, LocalFault.

    donors: peer keys, best first. A cancelled or failed fetch leaves what it has; the next one goes on from there.
    """
    fetch = _Fetch(open_stream, donors, wanted, files, retry_s)
    try:
        await fetch.run(patience_s, on_progress)
        return fetch.progress()
    finally:
        fetch.close()


class _Absent(NetworkFault):
    """The donor does not hold this snapshot."""


class _Fetch:
    def __init__(
        self, open_stream: OpenStream, donors: Sequence[bytes], wanted: Wanted, files: StateFiles, retry_s: float
    ) -> None:
        self._queue = deque(donors)
        self._open, self._wanted, self._files, self._retry_s = open_stream, wanted, files, retry_s
        self._ranges = wanted.shape.pieces()
        self._header: bytes | None = None
        self._beginning = asyncio.Lock()
        self._file: Fetched | None = None
        self._pieces: Pieces | None = None
        self._changed = asyncio.Event()  # something arrived or was given back; each change sets one and makes another
        self._began = self._moved_at = asyncio.get_running_loop().time()
        self._resumed = 0
        self._by_donor: dict[bytes, int] = {}

    async def run(self, patience_s: float, on_progress: Callable[[Progress], None]) -> None:
        places = min(MAX_DONORS, len(self._queue))
        workers = [asyncio.create_task(self._work(), name=f"donor {place}") for place in range(places)]
        try:
            await self._watch(workers, patience_s, on_progress)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self._pieces is None or not self._pieces.done or self._file is None:
            raise NetworkFault(f"nobody is left to give us the state of round {self._wanted.round}")
        await asyncio.to_thread(self._file.finish)

    async def _watch(
        self, workers: Sequence[asyncio.Task[None]], patience_s: float, on_progress: Callable[[Progress], None]
    ) -> None:
        """Until the work is done or cannot be done; raises what stopped a worker."""
        loop, pending = asyncio.get_running_loop(), set(workers)
        while pending and not (self._pieces is not None and self._pieces.done):
            if self._beginning.locked():  # we read what is on our own disk: nobody else's delay
                self._moved_at = loop.time()
            left_s = self._moved_at + patience_s - loop.time()
            if left_s <= 0:
                raise DeadlineMissed(f"nothing of the state of round {self._wanted.round} came in {patience_s:.0f} s")
            done, pending = await asyncio.wait(
                pending, timeout=min(left_s, REPORT_EVERY_S), return_when=asyncio.FIRST_COMPLETED
            )
            for worker in done:
                worker.result()
            if self._pieces is not None:
                on_progress(self.progress())

    def progress(self) -> Progress:
        total = self._wanted.shape.num_bytes
        taken = self._resumed + sum(self._by_donor.values())
        seconds = asyncio.get_running_loop().time() - self._began
        return Progress(taken, total, self._resumed, seconds, dict(self._by_donor))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    # --- one donor after the other, several at a time -----------------------------------------------

    async def _work(self) -> None:
        """Take donors from the queue until the state is whole or nobody is left to ask."""
        while self._queue and not (self._pieces is not None and self._pieces.done):
            donor = self._queue.popleft()
            if (pause_s := await self._turn(donor)) is not None:
                await asyncio.sleep(pause_s)
                self._queue.append(donor)

    async def _turn(self, donor: bytes) -> float | None:
        """What one donor gives now. Returns after how long it may be asked again; None: never."""
        name = donor.hex()[:12]
        try:
            await self._draw(donor)
            return 0.0
        except _Absent as fault:
            log.debug("%s: %s", name, fault)
            return None
        except PeerFault as fault:
            log.warning("%s is not asked for the state again: %s", name, fault)
            return None
        except NetworkFault as fault:
            log.debug("%s gave no more of the state: %s", name, fault)
            return self._retry_s
        finally:
            self._give_back(donor)

    async def _draw(self, donor: bytes) -> None:
        """Until the state is whole, or the donor has had its turn and others wait for theirs."""
        async with closing(self._open(donor, METHOD, ROUND.pack(self._wanted.round), OPEN_TIMEOUT_S)) as stream:
            await self._begin(await stream.read(self._wanted.max_header_bytes, HEADER_TIMEOUT_S))
            assert self._pieces is not None
            await self._ask(donor, stream, self._pieces)

    async def _ask(self, donor: bytes, stream: Stream, pieces: Pieces) -> None:
        loop, window = asyncio.get_running_loop(), MIN_WINDOW
        turn_ends = loop.time() + TURN_S
        waiting: deque[tuple[int, float]] = deque()  # (piece, when it was asked for), in the order of the answers
        while not pieces.done:
            changed, over = self._changed, bool(self._queue) and loop.time() > turn_ends
            while not over and len(waiting) < window and (piece := pieces.ask(donor)) is not None:
                waiting.append((piece, loop.time()))
                await stream.write(RANGE.pack(*self._ranges[piece]), PIECE_TIMEOUT_S)
            if not waiting and over:
                return
            if not waiting:
                await changed.wait()
                continue
            piece, asked_at = waiting.popleft()
            first, last = self._ranges[piece]
            data = await stream.read(self._wanted.shape.size(first, last), PIECE_TIMEOUT_S)
            await self._keep(donor, piece, data)
            faster = loop.time() - asked_at < IN_FLIGHT_S
            window = min(MAX_WINDOW, window + 1) if faster else max(MIN_WINDOW, window - 1)

    async def _keep(self, donor: bytes, piece: int, data: bytes) -> None:
        assert self._file is not None and self._pieces is not None
        first, last = self._ranges[piece]
        await asyncio.to_thread(self._file.put, first, last, data)
        if self._pieces.arrived(donor, piece):
            self._by_donor[donor] = self._by_donor.get(donor, 0) + len(data)
            self._moved_at = asyncio.get_running_loop().time()
        self._note_change()

    def _give_back(self, donor: bytes) -> None:
        if self._pieces is not None:
            self._pieces.dropped(donor)
            self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- the header ---------------------------------------------------------------------------------

    async def _begin(self, answer: bytes) -> None:
        """Check a donor's first answer; the first good one begins the fetch. Raises WireError for a wrong header."""
        if answer in (ABSENT, BUSY):
            raise _Absent("does not hold it") if answer == ABSENT else NetworkFault("has no place for us now")
        if answer[:1] != HELD:
            raise WireError("snapshot: an answer that nobody gives")
        async with self._beginning:
            if self._header is None:
                header = await asyncio.to_thread(self._checked, answer[1:])
                self._file = await asyncio.to_thread(self._files.fetch, header, self._wanted.shape)
                missing = await asyncio.to_thread(self._file.missing)
                wanted_bytes = sum(self._wanted.shape.size(*self._ranges[piece]) for piece in missing)
                self._resumed = self._wanted.shape.num_bytes - wanted_bytes
                self._pieces, self._header = Pieces(missing), answer
                self._began = self._moved_at = asyncio.get_running_loop().time()
        if answer != self._header:
            raise WireError("snapshot: another header than the one with the root")

    def _checked(self, data: bytes) -> Header:
        header = decode_header(data, self._wanted.round, self._wanted.shape)
        if header.root != self._wanted.root:
            raise WireError("snapshot: the header does not hash into the root we look for")
        return header
