"""What reducers keep of each sender, for who audits it in full and is refused: over streams, on a virtual clock."""

from __future__ import annotations

from pathlib import Path

from ring import Ring, RingNode, play

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.averaging.sent import MAX_ASKS
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.rules.audit_plan import SAMPLE, audit_beacon, audit_depth, probe_chunks
from distributed_training.protocol.types import Candidate, WorkRecord
from distributed_training.protocol.wire import decode_signed, decode_work
from distributed_training.training.outer import state_root

KNOWN = 44  # blocks after the start: the audit beacon, s+40, is final


def plan_of(ring: Ring) -> RoundPlan:
    """Of round 0, as every node made it."""
    round_, state = ring.run.round(0), ring.initial()
    roster = ring.ledger.roster(round_.roster_block)
    return make_plan(
        ring.run, round_, roster=roster, at_commit=ring.ledger.roster(round_.commit_block),
        beacon=assignment_beacon(roster.block.hash, ring.run.netuid, 0),
        state_root=state_root(state, ring.run.average.chunk_coords), carry=state.carry, num_coords=len(state.params),
    )  # fmt: skip


def record_of(node: RingNode, candidate: Candidate) -> WorkRecord:
    assert node.parts is not None
    signed = node.parts.store.work(0, candidate.record_hash)
    assert signed is not None
    return decode_work(decode_signed(signed).body)


async def fetched(ring: Ring, who: str, sender: str) -> dict[int, bytes]:
    """What `who` gets of everything `sender` sent in round 0."""
    plan, node, judge = plan_of(ring), ring.nodes[who], ring.nodes["validator-0"]
    candidate = plan.candidate(ring.nodes[sender].key.public_key)
    assert candidate is not None and node.parts is not None
    return await node.parts.butterfly.sent.fetch(plan, candidate, record_of(judge, candidate), range(7))


def own_wire(ring: Ring, name: str) -> dict[int, bytes]:
    layout, wire = plan_of(ring).layout, (ring.root / name / "rounds" / "000000" / "wire").read_bytes()
    sizes = [INT8.chunk_bytes(layout, c) for c in range(layout.num_chunks)]
    return {c: wire[sum(sizes[:c]) : sum(sizes[: c + 1])] for c in range(layout.num_chunks)}


def test_reducers_give_a_voter_the_vector_that_its_sender_refuses(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        sender = ring.order[2]
        await ring.at(38)
        assert await fetched(ring, "validator-0", sender) == {}, "before the beacon nobody says what is looked at"
        await ring.at(KNOWN)
        await ring.kill(sender)  # it need not be there
        spec, whole = plan_of(ring).slices[2], own_wire(ring, sender)
        theirs = {c: data for c, data in whole.items() if not spec.first_chunk <= c < spec.last_chunk}
        assert await fetched(ring, "validator-0", sender) == theirs and len(theirs) == 6, "its own slice only it has"
        assert await fetched(ring, ring.order[0], sender) == {}, "a miner is no voter"
        for _ in range(MAX_ASKS - 2):
            assert await fetched(ring, "validator-0", sender) == theirs
        assert await fetched(ring, "validator-0", sender) == {}, "a few times are enough"

    play(tmp_path, story, full_share=1.0)


def test_who_stood_in_gives_what_it_reduced(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        lost, sender = ring.order[1], ring.order[0]
        await ring.kill(lost)
        await ring.at(KNOWN)
        own, whole = plan_of(ring).slices, own_wire(ring, sender)
        assert lost not in {s.reducer for s in own}, "who did not commit reduces nothing"
        found = await fetched(ring, "validator-0", sender)
        assert found == {c: whole[c] for c in found} and len(found) == 7 - 2

    async def later(ring: Ring) -> None:
        lost, sender = ring.order[1], ring.order[0]
        await ring.at(26)
        await ring.kill(lost)
        await ring.at(KNOWN)
        own, whole = plan_of(ring).slices[0], own_wire(ring, sender)
        found = await fetched(ring, "validator-0", sender)
        assert found == {c: d for c, d in whole.items() if not own.first_chunk <= c < own.last_chunk}
        assert plan_of(ring).slices[1].reducer == ring.nodes[lost].key.public_key, "its backup had everything"

    play(tmp_path / "a", story, full_share=1.0)
    play(tmp_path / "b", later, full_share=1.0)


def test_only_what_the_beacon_draws_is_given_and_nothing_after_two_rounds(tmp_path: Path) -> None:
    drawn: dict[str, bool] = {}

    async def story(ring: Ring) -> None:
        await ring.at(KNOWN)
        plan, judge = plan_of(ring), ring.nodes["validator-0"].key.public_key
        beacon = audit_beacon(ring.ledger.roster(plan.round.audit_block).block.hash, 0)
        for node in ring.miners():
            depth = audit_depth(beacon, judge, node.key.public_key, 2, ring.run.audit, 1.0)
            drawn[node.name] = depth.full
            own = plan.slice_of(node.key.public_key)
            sample = probe_chunks(beacon, judge, node.key.public_key, 7, ring.run.audit.probe_chunks)[:SAMPLE]
            there = {c for c in range(7) if own is None or not own.first_chunk <= c < own.last_chunk}
            given = there if depth.full else there & set(sample)
            assert set(await fetched(ring, "validator-0", node.name)) == given
        kept = tmp_path / "miner-1" / "rounds" / "000000"
        assert list(kept.glob("sent-*"))
        await ring.settled(2)
        assert not list(kept.glob("sent-*")) and (kept / "wire").exists()
        assert all([await fetched(ring, "validator-0", name) == {} for name in drawn])

    play(tmp_path, story, miners=6, full_share=0.0)
    assert set(drawn.values()) == {True, False}
