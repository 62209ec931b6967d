"""Peers that a test drives by hand: real keys, real transport, real requests, and whatever lie the test wants."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
from subnet import Node, Subnet, build_node

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.averaging.plan import RoundPlan, layout_of
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.base import Transport
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import NO_ROOT, Commitment, Role, Signed, WorkRecord
from distributed_training.protocol.wire import encode_signed, encode_work, record_hash, signing_message
from distributed_training.roles.follower import Follower
from distributed_training.training.flat import num_parameters, to_flat
from distributed_training.training.model import run_model
from distributed_training.training.outer import RunState, initial_state

TIMEOUT_S = 5.0


async def make_puppet(subnet: Subnet, name: str, peer_key: bytes | None = None) -> Node:
    """A registered, announced node without a main loop; its block clock runs. `peer_key`: the one it claims."""
    node = await build_node(subnet, name)
    parts = node.parts
    claimed = Commitment(node.role, False, peer_key or parts.peer_key, parts.manifest.tag, None, None, None, None)
    address = node.config.announced
    assert address is not None
    await parts.chain.serve(*address)
    await parts.chain.commit(encode_commitment(claimed))
    node.task = asyncio.create_task(parts.clock.run(), name=f"clock of {name}")
    return node


def follower_of(node: Node) -> Follower:
    """At the start of round 0, whatever the node did since."""
    return Follower(node.parts, 0, first_state(node.parts.manifest), trusted=True)


def first_state(manifest: RunManifest) -> RunState:
    """Round 0, built anew from the preset."""
    model = run_model(manifest.model)
    return initial_state(to_flat(model), manifest.average)


async def raw(transport: Transport, target: Node, method: str, *frames: bytes) -> bytes:
    """Open a stream, write these frames, read one answer."""
    stream = await transport.open(target.parts.peer_key, method, TIMEOUT_S)
    try:
        for frame in frames:
            await stream.write(frame, TIMEOUT_S)
        return await stream.read(1 << 20, TIMEOUT_S)
    finally:
        await stream.close()


async def asked(node: Node, target: Node, method: str, payload: bytes, *frames: bytes) -> bytes:
    """As an honest node would begin, with its true name; then these frames; one answer."""
    stream = await node.parts.peers.open(target.parts.peer_key, method, payload, TIMEOUT_S)
    try:
        for frame in frames:
            await stream.write(frame, TIMEOUT_S)
        return await stream.read(1 << 20, TIMEOUT_S)
    finally:
        await stream.close()


@dataclass(frozen=True)
class Refused:
    """Checks that a node refuses: it counts the attempt and names the reason in its log."""

    log: pytest.LogCaptureFixture

    async def __call__(self, target: Node, reason: str, attack: Awaitable[object]) -> None:
        counted, named = target.refusals, self.log.text.count(reason)
        with suppress(NetworkFault, PeerFault):
            await attack
        async with asyncio.timeout(TIMEOUT_S):
            while target.refusals == counted or self.log.text.count(reason) == named:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the refusal is the other side's, a moment later


def poisoned(node: Node, slice_starts: tuple[int, int, int]) -> Contribution:
    """A vector whose chunk at the first place is fine but will be replaced on the way, at the second has another norm
    than declared, at the third holds a scale that is no number. Its digests are those of the bytes."""
    layout = layout_of(node.parts.manifest, num_parameters(node.engine.model))
    values = np.random.default_rng(1).normal(0, 1e-3, layout.num_coords).astype(np.float32)
    made = encode_contribution(values, layout, INT8)
    chunks, norms = list(made.chunks), list(made.norms)
    _, lied, broken = slice_starts
    norms[lied] *= 2.0
    chunks[broken] = chunks[broken][:4] + struct.pack("<f", math.nan) + chunks[broken][8:]
    return Contribution(tuple(chunks), tuple(digest(c) for c in chunks), tuple(norms))


async def commit_work(
    node: Node, root: bytes, contribution: Contribution, log_bytes: bytes, peer_key: bytes | None = None
) -> bytes:
    """Put the hash of a record of round 0 on chain, with a claim of two steps; returns the signed record.

    `peer_key`: the one this node claims.
    """
    p = node.parts
    record = WorkRecord(
        manifest=p.manifest.digest,
        round=0,
        uid=node.uid,
        public_key=p.signer.public_key,
        state_root=root,
        steps=2,
        tokens=2 * p.manifest.tokens_per_step,
        pages_root=merkle_root([digest(b"page")]),
        log_root=merkle_root([digest(log_bytes)]),
        wire_root=contribution.wire_root,
        codec=INT8.id,
        feedback_start=NO_ROOT,
        feedback_end=NO_ROOT,
        began_at=NO_ROOT,
        shift_step=0,
        chunk_norms=contribution.norms,
    )
    body = encode_work(record)
    claim = Commitment(Role.MINER, False, peer_key or p.peer_key, p.manifest.tag, 0, record_hash(body), None, None)
    await p.chain.commit(encode_commitment(claim))
    return encode_signed(Signed(body, p.signer.sign(signing_message(body))))


def reducer(subnet: Subnet, plan: RoundPlan, index: int) -> Node:
    return next(n for n in subnet.nodes.values() if n.parts.signer.public_key == plan.slices[index].reducer)
