"""The saboteur's wrappers over the memory transport: they strike at exactly the frame they name, and only once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from sabotage import LIES, Plan, Sabotage, durable_note
from sabotage_chain import OTHER_BYTES, SaboteurChain
from sabotage_transport import CHUNKS_BEFORE_FAULT, FIRST_CHUNK_FRAME, SaboteurTransport

from distributed_training.chain.base import Chain, Head
from distributed_training.errors import DeadlineMissed, NetworkFault
from distributed_training.network.base import Stream, Transport
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.types import Commitment, Field, Role
from distributed_training.protocol.wire import encode_request

ROUND = 3
REQUEST = encode_request(b"h" * 32, b"s" * 64, ROUND.to_bytes(4, "little") + b"\0\0")
ME, PEER, TAG = b"m" * 32, b"p" * 32, bytes(8)
CHUNK = b"0123456789"


class Scene:
    """A saboteur and one honest peer that takes what it is sent."""

    def __init__(self, fault: str, point: str, seconds: float = 60.0) -> None:
        self.notes: list[dict[str, Any]] = []
        self.strikes: list[str] = []
        self.received: list[bytes] = []
        self.sabotage = Sabotage(Plan(fault, point, ROUND, seconds), self.notes.append, self.strikes.append)
        switch = MemorySwitch()
        self.honest = MemoryTransport(switch, PEER)
        self.saboteur = cast(Transport, SaboteurTransport(MemoryTransport(switch, ME), self.sabotage))

    async def __aenter__(self) -> Scene:
        await self.honest.start()
        await self.saboteur.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.saboteur.stop()
        await self.honest.stop()

    async def take(self, stream: Stream) -> None:
        while True:
            self.received.append(await stream.read(1000, 5))

    async def scatter(self, chunks: int = 6) -> None:
        stream = await self.saboteur.open(PEER, "scatter", 1)
        for frame in (REQUEST, b"record", b"digests", *[CHUNK] * chunks):
            await stream.write(frame, 1)
        await asyncio.sleep(0.05)


async def test_mid_scatter_is_reached_once_with_the_bytes_that_had_left() -> None:
    async with Scene("freeze", "mid-scatter") as scene:
        scene.honest.serve("scatter", scene.take)
        await scene.scatter()
        await scene.scatter()
    assert scene.strikes == ["freeze"]
    (note,) = scene.notes
    frames = [REQUEST, b"record", b"digests", *[CHUNK] * CHUNKS_BEFORE_FAULT]
    assert note["bytes_in_flight"] == sum(map(len, frames))
    assert (note["fault"], note["point"], note["round"]) == ("freeze", "mid-scatter", ROUND)


async def test_no_other_round_is_touched() -> None:
    async with Scene("kill", "before-scatter") as scene:
        scene.honest.serve("scatter", scene.take)
        stream = await scene.saboteur.open(PEER, "scatter", 1)
        await stream.write(encode_request(b"h" * 32, b"s" * 64, (ROUND + 1).to_bytes(4, "little")), 1)
        assert scene.strikes == []
        await (await scene.saboteur.open(PEER, "scatter", 1)).write(REQUEST, 1)
        assert scene.strikes == ["kill"]


async def test_a_cut_line_breaks_every_stream_both_ways_until_it_is_mended() -> None:
    async with Scene("cut", "before-scatter", seconds=0.3) as scene:
        scene.honest.serve("scatter", scene.take)
        scene.saboteur.serve("slice", scene.take)
        with pytest.raises(NetworkFault, match="cut"):
            await (await scene.saboteur.open(PEER, "scatter", 1)).write(REQUEST, 1)
        with pytest.raises(NetworkFault, match="cut"):
            await scene.saboteur.open(PEER, "scatter", 1)
        incoming = await scene.honest.open(ME, "slice", 1)
        with pytest.raises(NetworkFault):
            await incoming.read(10, 1)
        assert scene.received == []
        await asyncio.sleep(0.35)
        await scene.scatter(1)
        assert scene.received == [REQUEST, b"record", b"digests", CHUNK]


async def test_a_slow_line_always_moves_and_never_delivers() -> None:
    async with Scene("slow", "mid-scatter") as scene:
        scene.honest.serve("scatter", scene.take)
        stream = await scene.saboteur.open(PEER, "scatter", 1)
        for frame in (REQUEST, b"record", b"digests", *[CHUNK] * CHUNKS_BEFORE_FAULT):
            await stream.write(frame, 1)
        with pytest.raises((NetworkFault, DeadlineMissed)):
            await stream.write(b"x" * 1000, 0.3)
        await asyncio.sleep(0.05)
        assert len(scene.received) == FIRST_CHUNK_FRAME + CHUNKS_BEFORE_FAULT


@pytest.mark.parametrize(
    ("point", "told"), [("before-scatter", CHUNK + b"\0"), ("mid-scatter", CHUNK[:-1] + bytes([CHUNK[-1] ^ 1]))]
)
async def test_lies_of_a_sender(point: str, told: bytes) -> None:
    async with Scene("lie", point) as scene:
        scene.honest.serve("scatter", scene.take)
        await scene.scatter()
        honest = CHUNKS_BEFORE_FAULT if point == "mid-scatter" else 0
        assert scene.received[FIRST_CHUNK_FRAME:] == [*[CHUNK] * honest, *[told] * (6 - honest)]


@pytest.mark.parametrize("point", ["mid-serve", "after-output"])
async def test_lies_of_a_holder_leave_its_record_true(point: str) -> None:
    async with Scene("lie", point) as scene:
        scene.saboteur.serve("slice", _serve_three)
        if point == "after-output":  # reached at the chain, not at the stream
            assert scene.sabotage.reach(point, ROUND)
        stream = await scene.honest.open(ME, "slice", 1)
        await stream.write(REQUEST, 1)
        assert await stream.read(100, 1) == b"record"
        assert await stream.read(100, 1) != CHUNK


async def _serve_three(stream: Stream) -> None:
    await stream.read(1000, 1)
    for frame in (b"record", CHUNK, CHUNK):
        await stream.write(frame, 1)


async def test_reducing_is_when_two_senders_have_been_told_that_all_is_in() -> None:
    async with Scene("kill", "reducing") as scene:
        scene.saboteur.serve("scatter", _acknowledge)
        for count in (0, 1):
            stream = await scene.honest.open(ME, "scatter", 1)
            await stream.write(REQUEST, 1)
            assert await stream.read(2, 1) == b"ok"
            await asyncio.sleep(0.02)
            assert scene.strikes == ["kill"] * count


async def _acknowledge(stream: Stream) -> None:
    await stream.read(1000, 1)
    await stream.write(b"ok", 1)


# --- the chain ------------------------------------------------------------------------------------------


class Notes:
    """A chain that keeps what is committed; the saboteur asks nothing else of it."""

    def __init__(self) -> None:
        self.commitments: list[Commitment | None] = []

    async def head(self) -> Head:
        return Head(42, 40)

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        self.commitments.append(decode_commitment(fields))
        return 43


def chain_of(scene: Scene, tmp_path: Path) -> tuple[Notes, SaboteurChain]:
    inner, unused = Notes(), cast(Any, None)
    return inner, SaboteurChain(cast(Chain, inner), scene.sabotage, unused, tmp_path)


def miner(second: bytes | None) -> Commitment:
    return Commitment(Role.MINER, True, ME, TAG, ROUND, b"w" * 32, ROUND if second else None, second)


@pytest.mark.parametrize(("point", "known"), [("before-output", 1), ("after-output", 2)])
async def test_the_output_commitment_has_a_before_and_an_after(point: str, known: int, tmp_path: Path) -> None:
    seen: list[int] = []
    scene = Scene("freeze", point)
    inner, chain = chain_of(scene, tmp_path)
    scene.sabotage._act = cast(Callable[[str], None], lambda fault: seen.append(len(inner.commitments)))
    await chain.head()
    await chain.commit(encode_commitment(miner(None)))
    await chain.commit(encode_commitment(miner(b"o" * 32)))
    assert seen == [known]
    assert scene.notes[0]["block"] == 42


async def test_lies_on_chain(tmp_path: Path) -> None:
    inner, chain = chain_of(Scene("lie", "before-output"), tmp_path)
    await chain.commit(encode_commitment(miner(None)))
    await chain.commit(encode_commitment(miner(b"o" * 32)))
    assert inner.commitments == [miner(None), miner(OTHER_BYTES)]
    inner, chain = chain_of(Scene("lie", "before-map"), tmp_path)
    honest = Commitment(Role.VALIDATOR, False, ME, TAG, ROUND, b"r" * 32, ROUND, b"\x07" + bytes(31))
    await chain.commit(encode_commitment(honest))
    (told,) = inner.commitments
    assert told is not None and told.second == b"\xff" * 32


def test_the_note_is_an_event_like_the_others(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"ready"}\n')
    durable_note(path, "miner")({"fault": "kill", "point": "train", "round": 1})
    assert path.read_text().splitlines()[1].startswith('{"time":') and '"event":"fault_injected"' in path.read_text()
    assert set(LIES) >= {"train", "before-commit", "before-scatter", "reducing", "before-map"}
