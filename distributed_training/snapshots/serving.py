"""What a node answers to those who join: its snapshots, by range, never a whole one in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

from distributed_training.errors import LocalFault, PeerFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.peers import PeerBook
from distributed_training.snapshots.header import ABSENT, BUSY, HELD, METHOD, RANGE, ROUND, Shape
from distributed_training.snapshots.states import StateFile, StateFiles

MAX_STREAMS = 8  # at a time; each holds one piece in memory
MAX_STREAMS_PER_PEER = 2  # a joiner that was cut off comes back before its old stream has ended
CONTROL_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 60.0  # for the next request
PIECE_TIMEOUT_S = 60.0  # for one piece to leave
SLOWEST_BYTES_PER_S = 1 << 16  # a stream lives as long as the whole state takes at this rate

Refresh = Callable[[], Awaitable[None]]


class SnapshotService:
    """Serves the snapshots in `files` to whoever is on the roster."""

    def __init__(self, peers: PeerBook, files: StateFiles, chunk_coords: int, refresh: Refresh) -> None:
        """refresh: learn the newest roster if there is a newer one; who joins is on no earlier one."""
        self._peers, self._files, self._chunk_coords, self._refresh = peers, files, chunk_coords, refresh
        self._streams: Counter[bytes] = Counter()
        self._one_header = asyncio.Lock()  # made once, not by every joiner at the same time
        peers.transport.serve(METHOD, self._on_snapshot)

    async def _on_snapshot(self, stream: Stream) -> None:
        await self._refresh()
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != ROUND.size:
            raise WireError("snapshot: malformed request")
        (round_index,) = ROUND.unpack(payload)
        async with self._place(neuron.public_key) as free:
            if not free:
                await stream.write(BUSY, CONTROL_TIMEOUT_S)
                return
            with ExitStack() as stack:
                try:
                    file = stack.enter_context(self._files.open(round_index))
                except (LocalFault, WireError):
                    await stream.write(ABSENT, CONTROL_TIMEOUT_S)
                    return
                await self._serve(stream, round_index, file)

    async def _serve(self, stream: Stream, round_index: int, file: StateFile) -> None:
        shape = Shape(file.prefix.num_coords, self._chunk_coords)
        lifetime_s = PIECE_TIMEOUT_S + shape.num_bytes / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(lifetime_s):
                async with self._one_header:
                    header = await asyncio.to_thread(self._files.header, round_index, file, shape)
                await stream.write(HELD + header, PIECE_TIMEOUT_S)
                while True:
                    first, last = _parse_range(await stream.read(RANGE.size, IDLE_TIMEOUT_S))
                    shape.check_range(first, last)
                    data = await asyncio.to_thread(file.read, shape, first, last)
                    await stream.write(data, PIECE_TIMEOUT_S)
        except TimeoutError:
            raise PeerFault(f"took more than {lifetime_s:.0f} s for one snapshot") from None

    @asynccontextmanager
    async def _place(self, public_key: bytes) -> AsyncIterator[bool]:
        """False: all places, or those of this peer, are taken."""
        if self._streams.total() >= MAX_STREAMS or self._streams[public_key] >= MAX_STREAMS_PER_PEER:
            yield False
            return
        self._streams[public_key] += 1
        try:
            yield True
        finally:
            self._streams[public_key] -= 1
            if not self._streams[public_key]:
                del self._streams[public_key]


def _parse_range(frame: bytes) -> tuple[int, int]:
    if len(frame) != RANGE.size:
        raise WireError("snapshot: malformed range")
    return RANGE.unpack(frame)
