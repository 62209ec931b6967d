"""Nodes of one process over real libp2p, and a chain that moves when told to: what `bench.py path` measures with."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distributed_training.averaging.butterfly import Butterfly, OwnWork
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.contribution import encode_contribution
from distributed_training.averaging.plan import RoundPlan, layout_of, make_plan
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import LocalKey, derive_keypair, verify
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import (
    NO_ROOT,
    BlockRef,
    Carry,
    Commitment,
    Neuron,
    Role,
    Roster,
    Round,
    Signed,
    WorkRecord,
)
from distributed_training.protocol.wire import encode_signed, encode_work, record_hash, signing_message
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import read_preset
from distributed_training.training.outer import RunState

RECIPE, MOVED = "gpt2-124m", np.float32(1e-3)


def mainnet_manifest() -> RunManifest:
    return draft_manifest(RECIPE, read_preset(RECIPE).model, None, {"netuid": 1})


class Told:
    """The chain as all nodes see it; `say` puts a commitment into its next block, and every block is final."""

    def __init__(self, neurons: list[Neuron], block: int) -> None:
        self.block, self._neurons = block, {n.public_key: n for n in neurons}

    async def head(self) -> Head:
        return Head(self.block, self.block)

    async def roster(self, block: int) -> Roster:
        return Roster(BlockRef(block, bytes(32)), tuple(self._neurons.values()))

    async def block_hash(self, block: int) -> bytes:
        return bytes(32)

    def say(self, key: bytes, **said: Any) -> None:
        self.block += 1
        neuron = self._neurons[key]
        assert neuron.commitment is not None
        now = replace(neuron.commitment, **said)
        self._neurons[key] = replace(neuron, commitment=now, commitment_block=self.block)


class Peer:
    """A miner: its vector, its state and its side of the all-reduce."""

    def __init__(self, folder: Path, uid: int, manifest: RunManifest, size: int) -> None:
        self.key, self.uid, self.manifest = LocalKey(derive_keypair(7, f"peer-{uid}")), uid, manifest
        self._identity = PeerIdentity.load_or_create(folder / f"{uid}.key")
        self.transport = Libp2pTransport(folder / f"{uid}.key", hints=False)
        self.store, self.layout = RoundStore(folder / f"node-{uid}"), layout_of(manifest, size)
        params = np.random.default_rng(1).standard_normal(size, np.float32)
        self.state = RunState(params, np.zeros(size, np.float32), 0, Carry(manifest.average.initial_tau, ()))
        self.delta = np.random.default_rng((2, uid)).standard_normal(size, np.float32) * MOVED
        self.root = bytes(32)

    def neuron(self) -> Neuron:
        said = Commitment(Role.MINER, True, self.transport.peer_key, self.manifest.tag, None, None, None, None)
        key, address = self.key.public_key, self.transport.address
        return Neuron(self.uid, self.key.hotkey, key, 0.0, False, 0, address, said, 1, 0.0, 0.0, 0, key)

    def open(self, chain: Any, clock: BlockClock) -> None:
        self.peers = PeerBook(self.transport, 1, self.key.public_key, self._identity.sign, verify_peer)
        self.butterfly = Butterfly(self.manifest, self.peers, self.store, chain, clock, self.key, verify)

    def encode(self, index: int) -> OwnWork:
        m, steps, uplink = self.manifest, 100, uplink_of(self.manifest.average)
        made = encode_contribution(self.delta, self.layout, uplink)
        record = WorkRecord(
            m.digest, index, self.uid, self.key.public_key, self.root, steps, steps * m.tokens_per_step, NO_ROOT,
            NO_ROOT, made.wire_root, uplink.id, NO_ROOT, NO_ROOT, NO_ROOT, 0, made.norms,
        )  # fmt: skip
        body = encode_work(record)
        self.store.put_own(index, made.chunks, b"log")
        return OwnWork(made, encode_signed(Signed(body, self.key.sign(signing_message(body)))))


@asynccontextmanager
async def opened(
    folder: Path, manifest: RunManifest, count: int, params: int, block_s: float
) -> AsyncIterator[tuple[list[Peer], Told, BlockClock]]:
    """Nodes that run and know each other, at the start of round 0."""
    async with AsyncExitStack() as stack:
        peers = [Peer(folder, uid, manifest, params) for uid in range(count)]
        for peer in peers:
            await peer.transport.start()
            stack.push_async_callback(peer.transport.stop)
        chain = Told([p.neuron() for p in peers], manifest.round(0).start_block)
        clock = BlockClock(chain, block_s)  # type: ignore[arg-type]
        for peer in peers:
            peer.open(chain, clock)
            peer.peers.update(await chain.roster(chain.block))
        yield peers, chain, clock


async def planned(peers: list[Peer], work: list[OwnWork], chain: Told, round_: Round) -> RoundPlan:
    """Everybody has committed its work; the chain stands behind s+D."""
    roster, state = await chain.roster(round_.roster_block), peers[0].state
    chain.block = round_.start_block
    for peer, own in zip(peers, work, strict=True):
        chain.say(peer.key.public_key, first_round=round_.index, first=record_hash(own.signed[64:]))
    chain.block = round_.commit_block + 1
    plan = make_plan(
        peers[0].manifest, round_, roster=roster, at_commit=await chain.roster(chain.block), beacon=bytes(32),
        state_root=peers[0].root, carry=state.carry, num_coords=len(state.params),
    )  # fmt: skip
    assert len(plan.slices) == len(peers), "everybody reduces"
    return plan


def children_s() -> float:
    """CPU seconds of this process's children: the libp2p daemons."""
    ticks, total, me = os.sysconf("SC_CLK_TCK"), 0.0, str(os.getpid())
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split() if folder.name.isdigit() else []
        except OSError:
            continue
        if fields and fields[1] == me:
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total
