"""What a node answers to those who join: its snapshots, by range, never a whole one in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from distributed_training.errors import LocalFault, PeerFault, WireError
from distributed_training.network.base import Stream, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.network.places import Places
from distributed_training.snapshots.header import ABSENT, BUSY, HELD, METHOD, RANGE, ROUND, Shape
from distributed_training.snapshots.states import StateFile, StateFiles

MAX_STREAMS = 8  # at a time; each holds one piece in memory
MAX_STREAMS_PER_PEER = 2  # a joiner that was cut off comes back before its old stream has ended
STATES_OF_A_PEER = 2  # so many times the bytes of one snapshot: its own fetch goes on from what it has
LEAST_BYTES = 4 << 20  # so that a tiny run is not about its overhead
MAX_REMEMBERED = 8192  # peers and rounds of which we know what they were given
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
        self._places = Places(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._given: Counter[tuple[bytes, int]] = Counter()  # (public key, round) -> bytes
        self._one_header = asyncio.Lock()  # made once, not by every joiner at the same time
        peers.transport.serve(METHOD, self._on_snapshot)

    async def _on_snapshot(self, stream: Stream) -> None:
        await self._refresh()
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != ROUND.size:
            raise WireError("snapshot: malformed request")
        (round_index,) = ROUND.unpack(payload)
        async with self._places.place(neuron.public_key) as free:
            if not free:
                await stream.write(BUSY, CONTROL_TIMEOUT_S)
                return
            with ExitStack() as stack:
                try:
                    file = stack.enter_context(self._files.open(round_index))
                except (LocalFault, WireError):
                    await stream.write(ABSENT, CONTROL_TIMEOUT_S)
                    return
                await self._serve(stream, neuron.public_key, round_index, file)

    async def _serve(self, stream: Stream, public_key: bytes, round_index: int, file: StateFile) -> None:
        shape = Shape(file.prefix.num_coords, self._chunk_coords)
        whose = public_key, round_index
        async with deadline(PIECE_TIMEOUT_S + shape.num_bytes / SLOWEST_BYTES_PER_S, "snapshot"):
            self._allow(whose, shape, 0)
            async with self._one_header:
                header = await asyncio.to_thread(self._files.header, round_index, file, shape)
            await self._give(stream, HELD + header, whose, shape)
            while True:
                first, last = _parse_range(await stream.read(RANGE.size, IDLE_TIMEOUT_S))
                shape.check_range(first, last)
                self._allow(whose, shape, shape.size(first, last))
                data = await asyncio.to_thread(file.read, shape, first, last)
                await self._give(stream, data, whose, shape)

    def _allow(self, whose: tuple[bytes, int], shape: Shape, size: int) -> None:
        """Raises PeerFault for who has had this snapshot more often than an honest fetch can need it."""
        if self._given[whose] + size > max(LEAST_BYTES, STATES_OF_A_PEER * shape.num_bytes):
            raise PeerFault(f"has had the snapshot of round {whose[1]} {STATES_OF_A_PEER} times")

    async def _give(self, stream: Stream, data: bytes, whose: tuple[bytes, int], shape: Shape) -> None:
        self._allow(whose, shape, len(data))
        if len(self._given) > MAX_REMEMBERED:
            self._given.clear()
        self._given[whose] += len(data)
        await self._peers.uplink.give(stream, data, PIECE_TIMEOUT_S)


def _parse_range(frame: bytes) -> tuple[int, int]:
    if len(frame) != RANGE.size:
        raise WireError("snapshot: malformed range")
    return RANGE.unpack(frame)
