"""The slice stream under readers and holders that freeze, on a virtual clock."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import group, key, neuron, roster

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.giving import PEER_SLICES
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.averaging.wants import METHOD, Patience, frame_bytes
from distributed_training.averaging.works import WorkBook
from distributed_training.errors import DeadlineMissed, NetworkFault
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import OutputRecord, Roster, Signed
from distributed_training.protocol.wire import encode_output, encode_signed
from distributed_training.simulation import loop

STALL_S, BULK_S = 2.0, 60.0
PIECES = 10
_RUN = group(2).run
RUN = _RUN.model_copy(update={"average": _RUN.average.model_copy(update={"chunk_coords": 1 << 16})})
FRAME_BYTES = frame_bytes(RUN)
REQUEST = struct.pack("<I32s", 7, key(0, "output"))
RECORD = OutputRecord(
    manifest=bytes(32), round=7, slice=0, public_key=key(1), output_root=bytes(32), backup=bytes(32),
    senders=(key(2, "work"),), included=((True,),),
)  # fmt: skip
BODY = encode_signed(Signed(encode_output(RECORD), bytes(64)))
EVERYTHING = b"\x01\x00"  # the slice, no work record


def yes(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return True


class Hall:
    """A holder with big slices, and readers 2, 3... that ask for them."""

    def __init__(self, root: Path) -> None:
        self.switch = MemorySwitch()
        people = [neuron(i) for i in range(1, 5)]
        self.roster: Roster = roster(*(replace(n, stake=1.0) for n in people))
        store = RoundStore(root)
        for number in range(PEER_SLICES):
            store.put_output(7, key(number, "output"), StoredOutput(BODY, (bytes(FRAME_BYTES),) * PIECES))
        peers = self.book(1)
        patience = Patience(STALL_S, STALL_S, BULK_S)
        self.slices = Slices(RUN, peers, store, WorkBook(RUN, yes, store), yes, patience)
        peers.transport.serve(METHOD, self.slices.giving.on_slice)
        self.holder: Any = peers.transport

    def book(self, number: int) -> PeerBook:
        transport = MemoryTransport(self.switch, key(number, "peer"))
        self.switch.plug(transport)
        book = PeerBook(transport, 1, key(number), lambda message: bytes(64), yes)
        book.update(self.roster)
        return book

    async def ask(self, book: PeerBook, number: int = 0) -> Any:
        """A stream on which the record has come and the slice is asked for."""
        request = struct.pack("<I32s", 7, key(number, "output"))
        stream = await book.open(key(1, "peer"), METHOD, request, STALL_S)
        assert await stream.read(4096, BULK_S) != b""
        await stream.write(EVERYTHING, STALL_S)
        return stream


async def read_all(stream: Any) -> int:
    return sum([len(await stream.read(FRAME_BYTES, STALL_S)) for _ in range(PIECES)])


def hall(tmp_path: Path, story: Callable[[Hall], Awaitable[None]]) -> None:
    async def main() -> None:
        await story(Hall(tmp_path))

    loop.run(main())


def test_a_reader_that_stalls_is_dropped_after_the_stall_time(tmp_path: Path) -> None:
    async def story(hall: Hall) -> None:
        stream = await hall.ask(hall.book(2))
        began = asyncio.get_running_loop().time()
        while not hall.holder.refusals:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert asyncio.get_running_loop().time() - began < STALL_S + 0.2
        with pytest.raises(NetworkFault):
            await read_all(stream)

    hall(tmp_path, story)


def test_a_slow_reader_that_moves_is_served_to_the_end(tmp_path: Path) -> None:
    async def story(hall: Hall) -> None:
        stream, total = await hall.ask(hall.book(2)), 0
        for _ in range(PIECES):
            await asyncio.sleep(0.6)
            total += len(await stream.read(FRAME_BYTES, STALL_S))
        assert total == PIECES * FRAME_BYTES and not hall.holder.refusals

    hall(tmp_path, story)


def test_a_slice_that_is_dropped_from_memory_while_it_is_served_comes_from_the_disk(tmp_path: Path) -> None:
    class Plain:
        def __init__(self, data: bytes) -> None:
            self.data = data

    async def story(hall: Hall) -> None:
        data = [bytes([n]) * FRAME_BYTES for n in range(PIECES)]
        hall.slices.giving._store.put_output(7, key(0, "output"), StoredOutput(BODY, tuple(data)))
        chunks: Any = tuple(Plain(each) for each in data)
        output = SliceOutput(RECORD, chunks, {})
        hall.slices.giving.have(7, key(0, "output"), output)
        stream = await hall.ask(hall.book(2))
        read = [await stream.read(FRAME_BYTES, STALL_S) for _ in range(3)]
        del output, chunks
        assert hall.slices.giving.held(key(0, "output")) is None, "nobody else keeps it"
        read += [await stream.read(FRAME_BYTES, STALL_S) for _ in range(PIECES - 3)]
        assert read == data

    hall(tmp_path, story)


def test_stalled_readers_occupy_only_their_own_share(tmp_path: Path) -> None:
    async def story(hall: Hall) -> None:
        greedy, patient = hall.book(2), hall.book(3)
        stuck = [await hall.ask(greedy, number) for number in range(PEER_SLICES)]
        waiting = await greedy.open(key(1, "peer"), METHOD, REQUEST, STALL_S)
        with pytest.raises(DeadlineMissed):
            await waiting.read(4096, STALL_S / 2)  # behind its own four streams
        began = asyncio.get_running_loop().time()
        assert await read_all(await hall.ask(patient)) == PIECES * FRAME_BYTES
        assert asyncio.get_running_loop().time() - began < 0.1, "nobody else waits"
        for stream in stuck:
            await stream.close()

    hall(tmp_path, story)


def test_malformed_wants_are_refused(tmp_path: Path) -> None:
    async def story(hall: Hall) -> None:
        book = hall.book(2)
        for number, wants in enumerate((b"\x02\x00", b"\x01\x02", b"\x00"), 1):
            stream = await book.open(key(1, "peer"), METHOD, REQUEST, STALL_S)
            await stream.read(4096, STALL_S)
            await stream.write(wants, STALL_S)
            with pytest.raises(NetworkFault):
                await stream.read(FRAME_BYTES, STALL_S)
            assert hall.holder.refusals == number

    hall(tmp_path, story)
