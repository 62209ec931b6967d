"""After two rounds: fetching slices from liars, from a damaged disk, and choosing a state to start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from puppets import first_state, follower_of
from subnet import Node, Subnet, finished, make_subnet, running

from distributed_training.averaging import gather
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore, encode_state
from distributed_training.errors import ConfigError, DeadlineMissed, PeerFault
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.memory import MemoryTransport
from distributed_training.roles.bootstrap import choose_start
from distributed_training.training.outer import RunState
from distributed_training.wire import decode_output, decode_signed

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Answer:
    """What an honest holder sends for one slice."""

    record: bytes
    works: tuple[bytes, ...]
    chunks: bytes

    def frames(self) -> list[bytes]:
        return [self.record, *self.works, self.chunks]


Lie = Callable[[Answer], list[bytes]]
LIES: tuple[tuple[str, Lie], ...] = (
    ("does not hold slice", lambda a: [b""]),
    ("signed record: too short", lambda a: [b"?"]),
    ("not the one whose hash is on chain", lambda a: replace(a, record=flipped(a.record, 70)).frames()),
    ("output record: bad signature", lambda a: replace(a, record=flipped(a.record, 0)).frames()),
    ("work record: bad signature", lambda a: replace(a, works=(flipped(a.works[0], 0), *a.works[1:])).frames()),
    ("work record: not the one whose hash", lambda a: replace(a, works=(a.works[1], *a.works[1:])).frames()),
    ("the chunks are others", lambda a: replace(a, chunks=flipped(a.chunks, -1)).frames()),
    ("slice: wrong number of bytes", lambda a: replace(a, chunks=a.chunks[:-1]).frames()),
    ("at most", lambda a: replace(a, chunks=a.chunks + b"?").frames()),
    ("at most", lambda a: replace(a, record=bytes(1 << 20)).frames()),
)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


async def test_only_what_hashes_into_the_chain_is_taken(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1)
    async with running(subnet, rounds=2):
        await finished(subnet)
        node = subnet.nodes["miner-0"]
        follower = follower_of(node)
        plan = await follower.plan(await follower.prepare())
        wanted = await node.parts.butterfly.wanted(plan, plan.round.output_block)
        assert sorted(wanted) == [0, 1, 2]
        await lies_are_refused(subnet, node, plan, wanted[0])
        await silence_costs_its_deadline(subnet, node, plan, wanted[0])
        await damage_is_repaired(node, plan, wanted)
        await starts(subnet)


def honest_answer(node: Node, output_hash: bytes) -> Answer:
    stored = node.parts.store.output(0, output_hash)
    assert stored is not None
    senders = decode_output(decode_signed(stored.record).body).senders
    works = [node.parts.store.work(0, sender) for sender in senders]
    return Answer(stored.record, tuple(work for work in works if work is not None), stored.chunks)


async def fetch(subnet: Subnet, node: Node, plan: RoundPlan, output_hash: bytes, frames: list[bytes], **over: float):
    """Slice 0 from a peer that answers with these frames, into an empty store."""
    liar = MemoryTransport(subnet.switch, PeerIdentity(bytes(31) + b"L"))

    async def answer(stream: Stream) -> None:
        await stream.read(1 << 16, TIMEOUT_S)
        for frame in frames:
            await stream.write(frame, TIMEOUT_S)
        await stream.read(1, TIMEOUT_S)

    liar.serve(gather.METHOD, answer)
    await liar.start()
    p, empty = node.parts, RoundStore(subnet.root / "empty")
    timeout_s = over.get("timeout_s", TIMEOUT_S)
    try:
        return await gather.fetch_slice(
            p.peers, liar.peer_key, plan, 0, output_hash, p.manifest, p.verify, empty, timeout_s
        )
    finally:
        await liar.stop()
        shutil.rmtree(empty.root)


async def lies_are_refused(subnet: Subnet, node: Node, plan: RoundPlan, output_hash: bytes) -> None:
    honest = honest_answer(node, output_hash)
    assert len(honest.works) == 3
    output = await fetch(subnet, node, plan, output_hash, honest.frames())
    assert b"".join(output.chunks) == honest.chunks
    for reason, lie in LIES:
        with pytest.raises(PeerFault, match=reason):
            await fetch(subnet, node, plan, output_hash, lie(honest))


async def silence_costs_its_deadline(subnet: Subnet, node: Node, plan: RoundPlan, output_hash: bytes) -> None:
    with pytest.raises(DeadlineMissed):
        await fetch(subnet, node, plan, output_hash, [], timeout_s=0.1)
    everything = honest_answer(node, output_hash).frames()
    with pytest.raises(DeadlineMissed):
        await fetch(subnet, node, plan, output_hash, everything[:-1], timeout_s=0.1)


async def damage_is_repaired(node: Node, plan: RoundPlan, wanted: dict[int, bytes]) -> None:
    """Bytes that rotted on our own disk are fetched again from others."""
    path = node.parts.store.root / "rounds" / "000000" / f"output-{wanted[1].hex()}.chunks"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, -1))
    outputs = await node.parts.butterfly.fetch(plan, wanted, TIMEOUT_S)
    assert sorted(outputs) == [0, 1, 2]
    assert b"".join(outputs[1].chunks) == whole == path.read_bytes()


async def starts(subnet: Subnet) -> None:
    """The newest state whose root is the majority's, or not decided yet; never one that was decided against."""
    p = subnet.nodes["miner-0"].parts
    found = p.store.newest_state()
    assert found is not None and found[0] == 2
    state = found[1]
    start = await choose_start(p, first_state(p.manifest))
    assert (start.index, start.trusted, start.source) == (2, False, "own snapshot")
    (p.store.root / "state" / "000002.safetensors").unlink()
    start = await choose_start(p, first_state(p.manifest))
    assert (start.index, start.trusted, start.source) == (2, False, "checkpoint")
    shutil.rmtree(subnet.root / "checkpoints")
    start = await choose_start(p, first_state(p.manifest))
    assert (start.index, start.trusted, start.source) == (1, True, "own snapshot")
    forged = RunState(state.params + np.float32(1), state.momentum, 1, state.carry)
    (p.store.root / "state" / "000001.safetensors").write_bytes(encode_state(1, forged))
    start = await choose_start(p, first_state(p.manifest))
    assert (start.index, start.trusted, start.source) == (0, True, "round 0")
    with pytest.raises(ConfigError, match="another round 0"):
        await choose_start(p, forged)
