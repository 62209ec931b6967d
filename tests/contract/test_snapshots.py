"""A state from several donors, over both transports: some of them lie, stall, die or are not who they seem."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distributed_training.averaging.store import RoundStore
from distributed_training.errors import NetworkFault
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import BlockRef, Carry, Commitment, Neuron, Role, Roster
from distributed_training.snapshots import fetching as snapshot_fetch
from distributed_training.snapshots import serving as snapshot_service
from distributed_training.snapshots.fetching import Progress, Wanted, fetch_snapshot
from distributed_training.snapshots.header import HELD, METHOD, RANGE, Shape, decode_header, header_of
from distributed_training.snapshots.serving import SnapshotService
from distributed_training.training.outer import RunState, state_root

ROUND, NUM_COORDS, CHUNK_COORDS = 8, 700_000, 50_000  # 28 chunks of 200 kB, six pieces
SHAPE = Shape(NUM_COORDS, CHUNK_COORDS)
WAIT_S = 20.0
Corrupt = Callable[[int, bytes], bytes | None]


def make_state(seed: int = 1) -> RunState:
    source = np.random.default_rng(seed)
    params, momentum = (source.standard_normal(NUM_COORDS, np.float32) for _ in range(2))
    return RunState(params, momentum, 8, Carry(12.5, ()))


STATE = make_state()
ROOT = state_root(STATE, CHUNK_COORDS)
WANTED = Wanted(ROUND, ROOT, SHAPE, SHAPE.max_header_bytes(16))


class Peer:
    """A node without a chain: transport, roster, kept bytes. `serve` makes it a donor."""

    def __init__(self, number: int, folder: Path, transport: MemoryTransport | Libp2pTransport, identity: PeerIdentity):
        self.number, self.transport, self.identity = number, transport, identity
        self.store = RoundStore(folder)
        self.book = PeerBook(transport, 1, bytes([number]) * 32, identity.sign, verify_peer)
        self.served = 0
        self.corrupt: Corrupt = lambda number, data: data

    @property
    def key(self) -> bytes:
        return self.identity.public_key

    def neuron(self) -> Neuron:
        claim = Commitment(Role.MINER, True, self.key, bytes(8), None, None, None, None)
        return Neuron(
            self.number,
            str(self.number),
            bytes([self.number]) * 32,
            0.0,
            False,
            1,
            ("127.0.0.2", 1),
            claim,
            1,
            0,
            0,
            0,
            bytes(32),
        )

    def serve(self, state: RunState = STATE) -> None:
        async def refresh() -> None:
            self.served += 1

        self.store.put_state(ROUND, state)
        SnapshotService(self.book, self.store.states, CHUNK_COORDS, refresh)

    def serve_badly(self, corrupt: Corrupt) -> None:
        """As an honest donor, but `corrupt` gets (number of the answer, bytes) and says what is sent; None: nothing."""
        self.store.put_state(ROUND, STATE)
        self.corrupt = corrupt

        async def handler(stream: Stream) -> None:
            await self.book.accept(stream, WAIT_S)
            with self.store.states.open(ROUND) as file:
                honest = self.store.states.header(ROUND, file, SHAPE)
                await stream.write(HELD + honest, WAIT_S)
                for number in range(1000):
                    first, last = RANGE.unpack(await stream.read(RANGE.size, WAIT_S))
                    data = self.corrupt(number, file.read(SHAPE, first, last))
                    self.served += 1
                    if data is None:
                        await asyncio.sleep(3600)
                    else:
                        await stream.write(data, WAIT_S)

        self.transport.serve(METHOD, handler)


Make = Callable[[int], Awaitable[list[Peer]]]


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Make]:
    """Started peers that know each other; the first one joins."""
    async with network("memory", tmp_path) as make:
        yield make


@pytest.fixture(params=["memory", "libp2p"])
async def peers_of_both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    async with network(request.param, tmp_path) as make:
        yield make


@asynccontextmanager
async def network(kind: str, folder: Path) -> AsyncIterator[Make]:
    switch, made = MemorySwitch(), []

    async def start(number: int) -> Peer:
        path = folder / f"{number}.key"
        identity = PeerIdentity.load_or_create(path)
        transport = MemoryTransport(switch, identity) if kind == "memory" else Libp2pTransport(path, hints=False)
        await transport.start()
        return Peer(number, folder / str(number), transport, identity)

    async def make(count: int) -> list[Peer]:
        made.extend(await asyncio.gather(*(start(number) for number in range(1, count + 1))))
        introduce(made)
        return made

    yield make
    for peer in made:
        await peer.transport.stop()


def introduce(made: Sequence[Peer], knows: Sequence[Peer] | None = None) -> None:
    """Put `made` on the roster of `knows` (all)."""
    neurons = [replace(p.neuron(), address=getattr(p.transport, "address", ("127.0.0.2", 1))) for p in made]
    for peer in knows if knows is not None else made:
        peer.book.update(Roster(BlockRef(1, bytes(32)), tuple(neurons)))


async def fetch(joiner: Peer, donors: Sequence[Peer], patience_s: float = WAIT_S, wanted: Wanted = WANTED) -> Progress:
    return await fetch_snapshot(
        joiner.book.open, [d.key for d in donors], wanted, joiner.store.states, patience_s=patience_s, retry_s=0.2
    )


def check_whole(joiner: Peer) -> None:
    index, state = joiner.store.states.load(ROUND)
    assert (index, state_root(state, CHUNK_COORDS)) == (ROUND, ROOT)
    assert state.params.tobytes() == STATE.params.tobytes()
    assert not list(joiner.store.states.folder.glob("*.fetch"))


async def test_several_donors_give_one_state_and_the_joiner_can_give_it_on(peers_of_both: Make) -> None:
    joiner, *donors = await peers_of_both(4)
    for donor in donors:
        donor.serve()
        donor.book.uplink.limit(SHAPE.num_bytes)  # a second for all of it: time enough to ask the others
    progress = await fetch(joiner, donors)
    check_whole(joiner)
    assert sum(progress.by_donor.values()) == progress.done_bytes == SHAPE.num_bytes
    assert len(progress.by_donor) >= 2 and progress.resumed_bytes == 0
    with donors[0].store.states.open(ROUND) as file:
        kept = donors[0].store.states.header(ROUND, file, SHAPE)
    assert decode_header(kept, ROUND, SHAPE) == header_of(ROUND, STATE, CHUNK_COORDS)


async def test_liars_are_dropped_and_asked_no_more(peers_of_both: Make) -> None:
    joiner, honest, chunk_liar, header_liar, long_winded = await peers_of_both(5)
    honest.serve()
    chunk_liar.serve_badly(lambda number, data: data[:-1] + bytes([data[-1] ^ 1]) if number == 1 else data)
    header_liar.serve(make_state(2))
    long_winded.serve_badly(lambda number, data: data + b"x")
    progress = await fetch(joiner, [chunk_liar, header_liar, long_winded, honest])
    check_whole(joiner)
    assert header_liar.key not in progress.by_donor and long_winded.key not in progress.by_donor
    assert progress.by_donor[honest.key] >= SHAPE.num_bytes // 2 and header_liar.served == 1


async def test_a_donor_that_stalls_or_dies_holds_up_nobody(peers_of_both: Make) -> None:
    joiner, honest, stalling, dying = await peers_of_both(4)
    honest.serve()
    stalling.serve_badly(lambda number, data: data if number < 1 else None)

    def die(number: int, data: bytes) -> bytes:
        if number == 1:
            raise RuntimeError("killed")
        return data

    dying.serve_badly(die)
    async with asyncio.timeout(0.8 * snapshot_fetch.PIECE_TIMEOUT_S):  # what the stalled answer alone would take
        await fetch(joiner, [stalling, dying, honest])
    check_whole(joiner)


async def test_without_an_honest_donor_it_ends_and_keeps_what_was_right(peers: Make) -> None:
    joiner, liar, honest = await peers(3)
    liar.serve_badly(lambda number, data: data if number < 2 else b"\0" * len(data))
    with pytest.raises(NetworkFault, match="nobody is left"):
        await fetch(joiner, [liar])
    assert joiner.store.newest_state() is None, "half a state is none"
    honest.serve()
    progress = await fetch(joiner, [honest])
    assert 0 < progress.resumed_bytes < SHAPE.num_bytes
    check_whole(joiner)


async def test_a_killed_joiner_goes_on_and_trusts_no_byte_it_finds(peers: Make) -> None:
    joiner, donor = await peers(2)
    donor.serve_badly(lambda number, data: data if number < 3 else None)
    fetching = asyncio.create_task(fetch(joiner, [donor]))
    kept = joiner.store.states.folder
    async with asyncio.timeout(WAIT_S):
        while not list(kept.glob("*.fetch")) or len(still_missing(joiner)) > len(SHAPE.pieces()) - 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    (partial,) = kept.glob("*.fetch")
    flip(partial, 1000)  # a bit that fell over in the first piece, which was there
    joiner.store = RoundStore(joiner.store.root)
    donor.corrupt = lambda number, data: data
    progress = await fetch(joiner, [donor])
    assert progress.resumed_bytes == sum(SHAPE.size(*piece) for piece in SHAPE.pieces()[1:3])
    check_whole(joiner)


def still_missing(joiner: Peer) -> list[int]:
    found = joiner.store.states.fetch(header_of(ROUND, STATE, CHUNK_COORDS), SHAPE)
    try:
        return found.missing()
    finally:
        found.close()


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


async def test_a_wrong_root_an_absent_round_and_silence_are_refused(peers: Make) -> None:
    joiner, donor, empty = await peers(3)
    donor.serve()
    SnapshotService(empty.book, empty.store.states, CHUNK_COORDS, lambda: asyncio.sleep(0))
    for wanted in (replace(WANTED, root=bytes(32)), replace(WANTED, round=ROUND + 1)):
        with pytest.raises(NetworkFault, match="nobody is left"):
            await fetch(joiner, [donor, empty], wanted=wanted)
    with pytest.raises(NetworkFault, match="nobody is left"):
        await fetch(joiner, [])
    assert joiner.store.newest_state() is None and not list(joiner.store.states.folder.iterdir())


async def test_who_is_not_on_the_roster_gets_nothing_until_it_is(peers: Make) -> None:
    joiner, donor = await peers(2)
    donor.serve()
    introduce([donor], knows=[donor])
    with pytest.raises(NetworkFault, match="nothing of the state"):
        await fetch(joiner, [donor], patience_s=0.5)
    fetching = asyncio.create_task(fetch(joiner, [donor]))
    await asyncio.sleep(0.3)
    introduce([joiner, donor], knows=[donor])
    await fetching
    check_whole(joiner)


async def test_places_are_bounded_for_one_peer_and_for_all(peers: Make) -> None:
    joiner, donor, other = await peers(3)
    donor.serve()
    limit = snapshot_service.MAX_STREAMS_PER_PEER

    async def answer(peer: Peer) -> tuple[Stream, bytes]:
        stream = await peer.book.open(donor.key, METHOD, snapshot_fetch.ROUND.pack(ROUND), WAIT_S)
        return stream, await stream.read(1 << 20, WAIT_S)

    held = [await answer(joiner) for _ in range(limit)]
    assert all(frame[:1] == HELD for _, frame in held)
    stream, frame = await answer(joiner)
    assert frame == snapshot_fetch.BUSY
    assert (await answer(other))[1][:1] == HELD
    for taken, _ in held:
        await taken.close()
    async with asyncio.timeout(WAIT_S):
        while (await answer(joiner))[1] == snapshot_fetch.BUSY:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await stream.close()


async def test_only_whole_bounded_ranges_are_served(peers: Make) -> None:
    joiner, donor = await peers(2)
    donor.serve()
    count = SHAPE.num_chunks
    for bad in (RANGE.pack(0, 0), RANGE.pack(3, 2), RANGE.pack(count - 1, count + 1), RANGE.pack(0, count), b"x"):
        stream = await joiner.book.open(donor.key, METHOD, snapshot_fetch.ROUND.pack(ROUND), WAIT_S)
        assert (await stream.read(1 << 20, WAIT_S))[:1] == HELD
        await stream.write(bad, WAIT_S)
        with pytest.raises(NetworkFault):
            await stream.read(1 << 24, WAIT_S)
