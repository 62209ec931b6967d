"""Hostile peers at the doors of a running subnet: each lie is refused, counted and named, and the round goes on.

Three honest miners and one validator run two rounds. `miner-3` is registered and lies, `miner-4` claims the peer key
of miner-0 and sends nothing, `validator-1` has a permit and asks too early; a stranger has only a peer key.
"""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from puppets import (
    TIMEOUT_S,
    Refused,
    asked,
    commit_work,
    follower_of,
    make_puppet,
    poisoned,
    raw,
    reducer,
)
from subnet import OVERRIDES, Node, Subnet, make_subnet, running, seen

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.contribution import Contribution
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.scatter import send_slice
from distributed_training.network.base import Transport
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.memory import MemoryTransport
from distributed_training.network.peers import MAX_REQUEST_BYTES
from distributed_training.protocol.merkle import shown_bytes
from distributed_training.protocol.wire import encode_request
from distributed_training.roles.service import push_log

pytestmark = pytest.mark.alone

PUPPETS = ("miner-3", "miner-4", "validator-1")
HEADER = struct.Struct("<IH8s")
ROUND_0 = struct.pack("<I", 0)
# More time between s+D and the reducers' cut-off: the lies need it, and they must not be refused for being late.
TIMING = {"output": 17, "map": 24, "length": 28}
FIRST_CHUNKS = (0, 5, 10)  # of the three slices of 15 chunks


@asynccontextmanager
async def hostile_subnet(root: Path) -> AsyncIterator[Subnet]:
    timing = OVERRIDES["timing"] | TIMING
    subnet = make_subnet(root, miners=5, owner=False, stakes={"validator-1": 1.0}, overrides={"timing": timing})

    async def add_puppets(subnet: Subnet) -> None:
        for name in PUPPETS:
            claimed = subnet.nodes["miner-0"].parts.peer_key if name == "miner-4" else None
            await make_puppet(subnet, name, claimed)

    async with running(subnet, without=PUPPETS, before_clock=add_puppets, rounds=2):
        yield subnet


@asynccontextmanager
async def stranger(subnet: Subnet) -> AsyncIterator[Transport]:
    transport = MemoryTransport(subnet.switch, PeerIdentity(os.urandom(32)))
    await transport.start()
    try:
        yield transport
    finally:
        await transport.stop()


async def test_lies_are_refused_counted_and_named_and_the_rounds_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "distributed_training")
    async with hostile_subnet(tmp_path) as subnet:
        refused = Refused(caplog)
        liar = subnet.nodes["miner-3"]
        await liar.parts.clock.reached(1)
        plan, work = await lie_in_training(subnet, refused)
        await lie_in_averaging(subnet, refused, plan, work)
        await lie_late(subnet, refused, plan, work)
        honest = [node for name, node in subnet.nodes.items() if name not in PUPPETS]
        async with asyncio.timeout(60):
            await asyncio.gather(*(node.task for node in honest))
        check_rounds(subnet, honest)
        check_cards(subnet)


async def lie_in_training(subnet: Subnet, refused: Refused) -> tuple[RoundPlan, OwnWork]:
    """Lies about who asks, and malformed requests. Returns the plan of round 0 and what the liar committed in it."""
    liar, thief, target = (subnet.nodes[name] for name in ("miner-3", "miner-4", "miner-0"))
    follower = follower_of(liar)
    start = await follower.prepare()
    await follower_of(thief).prepare()
    await follower_of(subnet.nodes["validator-1"]).prepare()
    await liar.parts.clock.reached(start.round.start_block)
    contribution = poisoned(liar, FIRST_CHUNKS)
    signed = await commit_work(liar, follower.root, contribution, b"no log")
    await commit_work(thief, follower.root, contribution, b"no log", target.parts.peer_key)
    await lie_about_names(subnet, refused, target)
    await malformed_requests(refused, liar, target)
    return await follower.plan(start), OwnWork(contribution, signed)


async def lie_about_names(subnet: Subnet, refused: Refused, target: Node) -> None:
    liar, thief = subnet.nodes["miner-3"], subnet.nodes["miner-4"]
    mine, theirs = liar.parts.signer.public_key, subnet.nodes["miner-1"].parts.signer.public_key
    ours = liar.parts.peers.transport
    for method in ("scatter", "slice", "log", "chunks"):
        at = subnet.nodes["validator-0"] if method == "log" else target
        async with stranger(subnet) as unknown:
            name = encode_request(os.urandom(32), bytes(64), ROUND_0)
            await refused(at, "is not on the roster", raw(unknown, at, method, name))
            stolen = encode_request(theirs, bytes(64), ROUND_0)
            await refused(at, "names another peer key on chain", raw(unknown, at, method, stolen))
        unsigned = encode_request(mine, bytes(64), ROUND_0)
        await refused(at, "the peer key did not sign this registration", raw(ours, at, method, unsigned))
        await refused(at, f"uid {thief.uid} names another peer key on chain", asked(thief, at, method, ROUND_0))
        await refused(at, "request: 96 bytes expected, 5 left", raw(ours, at, method, b"short"))
        oversized = bytes(MAX_REQUEST_BYTES + 1)
        await refused(at, f"a frame of {len(oversized)} bytes was announced", raw(ours, at, method, oversized))


async def malformed_requests(refused: Refused, liar: Node, target: Node) -> None:
    await refused(target, "nobody serves 'weights'", raw(liar.parts.peers.transport, target, "weights"))
    await refused(target, "scatter: malformed header", asked(liar, target, "scatter", b"?"))
    await refused(target, "slice: malformed request", asked(liar, target, "slice", b"?"))
    await refused(target, "request: malformed round", asked(liar, target, "chunks", b"?"))
    chunks = asked(liar, target, "chunks", ROUND_0 + target.parts.signer.public_key)
    await refused(target, f"uid {liar.uid} is no validator of round 0", chunks)
    assert await asked(liar, target, "slice", struct.pack("<I32s", 0, os.urandom(32))) == b"", "an honest no"


async def lie_in_averaging(subnet: Subnet, refused: Refused, plan: RoundPlan, work: OwnWork) -> None:
    """Lies of a candidate to reducers and validators, and a validator that does not wait for the beacon."""
    liar, early, validator = (subnet.nodes[name] for name in ("miner-3", "validator-1", "validator-0"))
    assert len(plan.slices) == 3 and tuple(s.first_chunk for s in plan.slices) == FIRST_CHUNKS
    first, header, unsigned = reducer(subnet, plan, 0), HEADER.pack(0, 0, plan.tag), bytes(64) + work.signed[64:]
    await refused(first, "work record: bad signature", asked(liar, first, "scatter", header, unsigned))
    await asyncio.gather(
        refused(reducer(subnet, plan, 0), "chunk 0 is not the committed one", send(liar, plan, 0, swapped(work))),
        refused(reducer(subnet, plan, 1), "chunk 5 has another norm than declared", send(liar, plan, 1, work)),
        refused(reducer(subnet, plan, 2), "chunk 10: a scale is negative, too small", send(liar, plan, 2, work)),
        refused(subnet.nodes["miner-0"], "chunks asked for before the audit beacon", ask_chunks(early, subnet)),
        refused(validator, f"uid {early.uid} is no candidate of round 0", push(early, validator, work.signed, b"")),
    )
    wrong_slice = HEADER.pack(0, (plan.slices[0].index + 1) % 3, plan.tag)
    await refused(first, f"uid {liar.uid} may not send slice", asked(liar, first, "scatter", wrong_slice))
    foreign = bytes(64) + b"another record"
    await refused(first, "not the one whose hash is on chain", asked(liar, first, "scatter", header, foreign))
    spec = plan.slices[0]
    other = bytes(shown_bytes(plan.layout.num_chunks, range(spec.first_chunk, spec.last_chunk)))
    await refused(
        first, "do not hash into the committed root", asked(liar, first, "scatter", header, work.signed, other)
    )
    await refused(validator, "another work record than the one on chain", push(liar, validator, foreign, b""))
    huge = bytes(1 << 16)
    await refused(validator, f"a frame of {len(huge)} bytes was announced", push(liar, validator, work.signed, huge))
    await push(liar, validator, work.signed, b"no log")  # taken: what it is worth is the audit's business


async def lie_late(subnet: Subnet, refused: Refused, plan: RoundPlan, work: OwnWork) -> None:
    liar = subnet.nodes["miner-3"]
    target = reducer(subnet, plan, 0)
    await liar.parts.clock.reached(plan.round.output_block)
    await refused(target, "scatter: too late", send(liar, plan, 0, work))
    await liar.parts.clock.final(subnet.manifest.round(1).commit_block)
    await seen(target, "phase", round=1, phase="average", timeout_s=TIMEOUT_S)
    await refused(target, "round 0 is over here", send(liar, plan, 0, work))


async def send(liar: Node, plan: RoundPlan, index: int, work: OwnWork) -> None:
    candidate = plan.candidate(plan.slices[index].reducer)
    assert candidate is not None
    spec = plan.slices[index]
    stream = await send_slice(liar.parts.peers, candidate, spec, plan, work, TIMEOUT_S, TIMEOUT_S)
    await stream.close()


def swapped(work: OwnWork) -> OwnWork:
    """Other bytes on the wire than those that were committed."""
    c = work.contribution
    first = c.chunks[0][:-1] + bytes([c.chunks[0][-1] ^ 1])
    return OwnWork(Contribution((first, *c.chunks[1:]), c.digests, c.norms), work.signed)


async def ask_chunks(validator: Node, subnet: Subnet) -> bytes:
    miner = subnet.nodes["miner-0"]
    return await asked(validator, miner, "chunks", ROUND_0 + miner.parts.signer.public_key)


async def push(sender: Node, validator: Node, signed: bytes, log: bytes) -> None:
    await push_log(sender.parts.peers, validator.parts.peer_key, 0, signed, log, TIMEOUT_S)


def check_rounds(subnet: Subnet, honest: list[Node]) -> None:
    """Both rounds were applied, with all honest miners and none of the others, and the same everywhere."""
    miners = sorted(node.uid for node in honest if node.name.startswith("miner"))
    for index in (0, 1):
        assert len({node.rounds()[index]["state_root"] for node in honest}) == 1
        for node in honest:
            event = node.rounds()[index]
            assert (event["applied"], event["included"], event["counted"]) == (True, miners, [0, 1, 2])
            assert {uid for uid, share in event["credit"].items() if share > 0} == {str(uid) for uid in miners}


def check_cards(subnet: Subnet) -> None:
    """Honest miners share everything. The liar's log failed its audit; who sent nothing has done no duty."""
    validator = subnet.nodes["validator-0"]
    cards = validator.all("scores", round=0)[0]["cards"]
    paid = {uid for uid, card in cards.items() if card["weight"] > 0}
    assert paid == {str(subnet.nodes[name].uid) for name in ("miner-0", "miner-1", "miner-2")}
    liar, thief = (cards[str(subnet.nodes[name].uid)] for name in ("miner-3", "miner-4"))
    assert "fail" in liar["note"] and liar["G"] == 0.0
    assert (thief["S"], thief["I"]) == (0.0, 0.0)
