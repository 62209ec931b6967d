"""After a run: fetching slices from liars, from a damaged disk, and choosing a state to start from."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hub import TestHub
from puppets import first_state, follower_of
from subnet import Node, Subnet

from distributed_training.assembly import make_exporter
from distributed_training.averaging import wants
from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.wants import Patience
from distributed_training.averaging.works import WorkBook
from distributed_training.chain.base import Chain
from distributed_training.checkpoints.description import run_name
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import ConfigError, DeadlineMissed, PeerFault
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.memory import MemoryTransport
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import Claim
from distributed_training.protocol.types import Neuron, Role, Roster
from distributed_training.protocol.wire import decode_output, decode_signed
from distributed_training.roles.joining.bootstrap import choose_start
from distributed_training.roles.joining.snapshots import Decided, newest_decided
from distributed_training.roles.parts import Parts
from distributed_training.snapshots.statefile import encode_state
from distributed_training.training.outer import RunState, state_root

pytestmark = pytest.mark.alone

TIMEOUT_S = 5.0
shared = pytest.mark.asyncio(loop_scope="session")


@dataclass(frozen=True)
class Answer:
    """What an honest holder sends for one slice."""

    record: bytes
    works: tuple[bytes, ...]
    chunks: bytes
    ends: tuple[int, ...]  # of all chunks but the last

    def frames(self) -> list[bytes]:
        cuts = pairwise((0, *self.ends, len(self.chunks)))
        return [self.record, *self.works, *(self.chunks[a:b] for a, b in cuts)]


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


@dataclass(frozen=True)
class Asker:
    """A node that wants the slices of round 0, and the hashes that the chain holds."""

    subnet: Subnet
    node: Node
    plan: RoundPlan
    wanted: dict[int, Claim]


async def asker_of(subnet: Subnet) -> Asker:
    node = subnet.nodes["miner-0"]
    follower = follower_of(node)
    plan = await follower.plan(await follower.prepare())
    return Asker(subnet, node, plan, await node.parts.butterfly.collector.wanted(plan, plan.round.output_block))


def honest_answer(asker: Asker) -> Answer:
    """Slice 0."""
    node, output_hash, plan = asker.node, asker.wanted[0].record_hash, asker.plan
    stored = node.parts.store.output(0, output_hash)
    assert stored is not None
    senders = decode_output(decode_signed(stored.record).body).senders
    works = [node.parts.store.work(0, sender) for sender in senders]
    spec = plan.slices[0]
    sizes = (plan.output.chunk_bytes(plan.layout, c) for c in range(spec.first_chunk, spec.last_chunk))
    ends = tuple(accumulate(sizes))[:-1]
    return Answer(stored.record, tuple(work for work in works if work is not None), stored.whole, ends)


async def fetch(asker: Asker, frames: list[bytes], timeout_s: float = TIMEOUT_S) -> SliceOutput:
    """Slice 0 from a peer that answers with these frames, into an empty store."""
    liar = MemoryTransport(asker.subnet.switch, PeerIdentity(bytes(31) + b"L"))

    async def answer(stream: Stream) -> None:
        await stream.read(1 << 16, TIMEOUT_S)
        for number, frame in enumerate(frames):
            await stream.write(frame, TIMEOUT_S)
            if number == 0:  # the record; then it hears what is wanted
                await stream.read(1 << 16, TIMEOUT_S)
        await stream.read(1, TIMEOUT_S)

    liar.serve(wants.METHOD, answer)
    await liar.start()
    p, empty = asker.node.parts, RoundStore(asker.subnet.root / "empty")
    works = WorkBook(p.manifest, p.verify, empty)
    slices = Slices(p.manifest, p.peers, empty, works, p.verify, Patience(TIMEOUT_S, timeout_s, TIMEOUT_S))
    claim = asker.wanted[0]
    try:
        return await slices.fetch(liar.peer_key, asker.plan, 0, claim.reducer, claim.record_hash)
    finally:
        await liar.stop()
        shutil.rmtree(empty.root)


@shared
async def test_only_what_hashes_into_the_chain_is_taken(finished_subnet: Subnet) -> None:
    asker = await asker_of(finished_subnet)
    honest = honest_answer(asker)
    assert len(honest.works) == 4
    output = await fetch(asker, honest.frames())
    assert b"".join(chunk.data for chunk in output.chunks) == honest.chunks
    for reason, lie in LIES:
        with pytest.raises(PeerFault, match=reason):
            await fetch(asker, lie(honest))


@shared
async def test_a_silent_holder_costs_its_deadline(finished_subnet: Subnet) -> None:
    asker = await asker_of(finished_subnet)
    everything = honest_answer(asker).frames()
    for frames in ([], everything[:-1]):
        with pytest.raises(DeadlineMissed):
            await fetch(asker, frames, timeout_s=0.1)


@shared
async def test_a_fetch_that_is_cancelled_leaves_no_task_behind(finished_subnet: Subnet) -> None:
    asker = await asker_of(finished_subnet)
    unknown = asker.node.parts.butterfly.collector.fetch(
        asker.plan, {0: replace(asker.wanted[0], record_hash=bytes(32))}, {}, {}
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(unknown, 0.1)
    assert "gather 0" not in {task.get_name() for task in asyncio.all_tasks()}


@shared
async def test_bytes_that_rot_on_our_own_disk_are_fetched_again(finished_subnet: Subnet) -> None:
    asker = await asker_of(finished_subnet)
    node, wanted = asker.node, asker.wanted
    path = node.parts.store.root / "rounds" / "000000" / f"output-{wanted[1].record_hash.hex()}.chunks"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, -1))
    outputs: dict[int, SliceOutput] = {}
    await node.parts.butterfly.collector.fetch(asker.plan, wanted, {}, outputs)
    assert sorted(outputs) == [0, 1, 2, 3]
    assert b"".join(chunk.data for chunk in outputs[1].chunks) == whole == path.read_bytes()


@shared
async def test_a_state_is_decided_by_the_majority_or_on_a_tie_by_the_owner(
    finished_subnet: Subnet, tmp_path: Path
) -> None:
    shutil.copytree(finished_subnet.root / "checkpoints", tmp_path / "checkpoints")
    p = replace(finished_subnet.nodes["miner-0"].parts, checkpoints=LocalCheckpoints(tmp_path / "checkpoints"))
    roots = [event["state_root"] for event in finished_subnet.nodes["owner"].rounds().values()]
    assert await newest_decided(p, 0) == Decided(2, bytes.fromhex(roots[1]), True)
    assert await newest_decided(p, 2) is None, "nobody has said the root of round 3"
    split = replace(p, chain=cast(Any, OneSaysAnother(p.chain, finished_subnet.validators()[0].uid)))
    assert await newest_decided(split, 0) == Decided(2, bytes.fromhex(roots[1]), False), "the owner's checkpoint"
    path = tmp_path / "checkpoints" / "round-000002" / "training_state.json"
    path.write_text(path.read_text().replace(roots[1], "00" * 32))
    assert await newest_decided(split, 0) is None, "not the checkpoint that the owner put on chain"
    assert await newest_decided(p, 0) is not None


def keeping(manifest: RunManifest, **keep: int) -> RunManifest:
    made = manifest.model_copy(update={"keep": manifest.keep.model_copy(update=keep)})
    vars(made)["digest"] = manifest.digest  # it is still the same run
    return made


class OneSaysAnother:
    """A chain on which one of two validators of equal stake committed another root."""

    def __init__(self, chain: Chain, uid: int) -> None:
        self.head, self._chain, self._uid = chain.head, chain, uid

    async def roster(self, block: int) -> Roster:
        roster = await self._chain.roster(block)
        return replace(roster, neurons=tuple(self._altered(neuron) for neuron in roster.neurons))

    def _altered(self, neuron: Neuron) -> Neuron:
        if neuron.uid != self._uid or neuron.commitment is None:
            return neuron
        return replace(neuron, commitment=replace(neuron.commitment, first=bytes(32)))


class NobodyListens:
    """A chain on which no node published an address."""

    def __init__(self, chain: Chain) -> None:
        self.head, self._chain = chain.head, chain

    async def roster(self, block: int) -> Roster:
        roster = await self._chain.roster(block)
        return replace(roster, neurons=tuple(replace(neuron, address=None) for neuron in roster.neurons))


@shared
async def test_which_state_a_node_starts_from(finished_subnet: Subnet, tmp_path: Path) -> None:
    """The newest state whose root is the majority's, or not decided yet; never one that was decided against."""
    shutil.copytree(finished_subnet.root / "nodes" / "miner-0", tmp_path / "node")
    shutil.copytree(finished_subnet.root / "checkpoints", tmp_path / "checkpoints")
    p = replace(
        finished_subnet.nodes["miner-0"].parts,
        store=RoundStore(tmp_path / "node"),
        checkpoints=LocalCheckpoints(tmp_path / "checkpoints"),
    )
    states = tmp_path / "node" / "state"
    found = p.store.newest_state()
    assert found is not None and found[0] == 3
    state = found[1]

    async def chosen(**more: int) -> tuple[int, bool, str]:
        start = await choose_start(p, lambda: first_state(p.manifest), **more)
        return start.index, start.trusted, start.source

    assert await chosen() == (3, False, "own snapshot"), "round 3 never ran, so nobody has said its root"
    (states / "000003.safetensors").unlink()
    assert await chosen() == (2, True, "own snapshot")
    assert await chosen(stuck_at=2) == (2, True, "own snapshot"), "peers have no later one that is decided"
    old = first_state(p.manifest)
    (states / "000002.safetensors").unlink()
    (states / "000000.safetensors").write_bytes(encode_state(0, old))
    assert await chosen() == (0, True, "own snapshot"), "peers keep every round since"
    assert await chosen(stuck_at=1) == (2, True, "peers"), "our own state does not lead past round 1"
    (states / "000002.safetensors").unlink()
    kept, p = p, replace(p, manifest=keeping(p.manifest, output_rounds=1))
    assert await chosen() == (2, True, "peers"), "nobody keeps the rounds since any more"
    p = kept
    forged = RunState(state.params + np.float32(1), state.momentum, 2, state.carry)
    (states / "000002.safetensors").write_bytes(encode_state(2, forged))
    assert await chosen() == (2, True, "peers"), "the majority's state of the newest round that it has decided"
    (states / "000002.safetensors").write_bytes(encode_state(2, forged))
    p = replace(p, chain=cast(Any, NobodyListens(p.chain)))
    assert await chosen() == (2, True, "checkpoint")
    shutil.rmtree(tmp_path / "checkpoints")
    assert await chosen() == (0, True, "round 0")
    with pytest.raises(ConfigError, match="another round 0"):
        await choose_start(p, lambda: forged)


class KeySays:
    """A chain on which the run key's commitment names this checkpoint (None: none), and nobody published an address.
    Everybody else says that they own the run, and name what there is not."""

    def __init__(self, parts: Parts, named: tuple[int, bytes] | None) -> None:
        self.head, self._chain, self._named = parts.chain.head, NobodyListens(parts.chain), named
        self._key, self._digest = bytes.fromhex(parts.manifest.public.run_key), parts.manifest.digest

    async def roster(self, block: int) -> Roster:
        roster = await self._chain.roster(block)
        return replace(roster, neurons=tuple(self._altered(neuron) for neuron in roster.neurons))

    def _altered(self, neuron: Neuron) -> Neuron:
        if neuron.commitment is None or neuron.commitment.role is Role.VALIDATOR:
            return neuron
        index, digest = (self._named or (None, None)) if neuron.public_key == self._key else (1, bytes(32))
        said = replace(neuron.commitment, role=Role.OWNER, first=self._digest, second_round=index, second=digest)
        return replace(neuron, commitment=said)


@shared
async def test_a_checkpoint_that_the_chain_does_not_name_is_only_a_hint(
    finished_subnet: Subnet, tmp_path: Path
) -> None:
    shutil.copytree(finished_subnet.root / "checkpoints", tmp_path / "checkpoints")
    node, store = finished_subnet.nodes["miner-0"], LocalCheckpoints(tmp_path / "checkpoints")
    lost = replace(node.parts.params, owner_hotkey=node.me.hotkey)  # the subnet has another owner by now
    p = replace(node.parts, params=lost, store=RoundStore(tmp_path / "node"), checkpoints=store)
    found = node.parts.store.newest_state()
    assert found is not None and found[0] == 3, "whose root nobody has said yet"
    (tmp_path / "out").mkdir()
    exporter = make_exporter(node.config, p.manifest, node.engine, {}, None)
    exporter.write(tmp_path / "out", 3, found[1], state_root(found[1], p.manifest.average.chunk_coords))
    third = store.publish(3, tmp_path / "out")
    second = store.find(2, None)
    assert second is not None

    async def chosen(named: tuple[int, bytes] | None) -> tuple[int, bool, str]:
        chain = KeySays(node.parts, named)
        start = await choose_start(replace(p, chain=cast(Any, chain)), lambda: first_state(p.manifest))
        return start.index, start.trusted, start.source

    assert await chosen((2, second.digest)) == (2, True, "checkpoint"), "what is named, not what is newest"
    assert await chosen((3, third.digest)) == (3, False, "checkpoint"), "the run key may be ahead of the majority"
    assert await chosen(None) == (0, True, "round 0"), "the newest one is confirmed by nobody"
    assert await chosen((3, bytes(32))) == (0, True, "round 0"), "the one there is not the one that is named"
    shutil.rmtree(third.location)
    assert await chosen(None) == (2, True, "checkpoint"), "the majority's root makes the newest one good"
    assert await chosen((3, third.digest)) == (2, True, "checkpoint")


@shared
async def test_a_node_starts_from_the_hub_alone_and_without_it_from_round_0(
    finished_subnet: Subnet, tmp_path: Path
) -> None:
    node, run = finished_subnet.nodes["miner-0"], finished_subnet.manifest
    name = run_name(run.name, run.sha256)
    with TestHub(tmp_path / "hub") as hub:
        owners = HubCheckpoints("org/run", name, tmp_path / "a", token="hf_test", endpoint=hub.endpoint)
        owners.check(write=True)
        source = LocalCheckpoints(finished_subnet.root / "checkpoints").find(2, None)
        assert source is not None
        published = owners.publish(2, Path(source.location))
        joiners = HubCheckpoints("org/run", name, tmp_path / "b", endpoint=hub.endpoint)
        chain = KeySays(node.parts, (2, published.digest))
        store = RoundStore(tmp_path / "node")
        p = replace(node.parts, store=store, checkpoints=joiners, chain=cast(Any, chain))
        hub.faults.add("drop", path="/cdn/", times=2, after_bytes=10_000)
        start = await choose_start(p, lambda: first_state(run))
        assert (start.index, start.trusted, start.source) == (2, True, "checkpoint")
        hub.faults.add("wrong_bytes", path="/cdn/", times=None)
        shutil.rmtree(tmp_path / "b")
        start = await choose_start(p, lambda: first_state(run))
        assert (start.index, start.source) == (0, "round 0"), "bytes that are not the named ones are no state"
    start = await choose_start(p, lambda: first_state(run))
    assert (start.index, start.source) == (0, "round 0"), "the Hub is away"
