"""The chain goes away while validators ask miners for chunks: nobody is charged for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ring import Ring, play

from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.rules.audit_plan import audit_beacon
from distributed_training.protocol.wire import decode_signed, decode_work
from distributed_training.roles.auditing.probe import Probe, Prober
from distributed_training.training.outer import state_root

TIMEOUT_S = 4.5  # a probe's: a twelfth of a round
ASKED_AT = 44  # blocks after the start of a round: the audit beacon, s+40, is final


def plan_of(ring: Ring) -> RoundPlan:
    """Of round 0, as every node made it."""
    round_, follower, ledger = ring.run.round(0), ring.nodes["validator-0"].follower, ring.ledger
    assert follower is not None
    roster, chunks = ledger.roster(round_.roster_block), ring.run.average.chunk_coords
    return make_plan(
        ring.run, round_, roster=roster, at_commit=ledger.roster(round_.commit_block),
        beacon=assignment_beacon(roster.block.hash, ring.run.netuid, 0), state_root=state_root(follower.state, chunks),
        carry=follower.state.carry, num_coords=len(follower.state.params),
    )  # fmt: skip


async def probes(ring: Ring) -> list[Probe | None]:
    """What validator-0 finds of every miner in round 0."""
    asker, plan = ring.nodes["validator-0"], plan_of(ring)
    assert asker.parts is not None
    beacon = audit_beacon(ring.ledger.roster(plan.round.audit_block).block.hash, 0)
    prober = Prober(ring.run, asker.parts.peers, asker.parts.clock, asker.key.public_key, TIMEOUT_S)
    found = []
    for candidate in plan.candidates:
        signed = asker.parts.store.work(0, candidate.record_hash)
        assert signed is not None
        work = decode_work(decode_signed(signed).body)
        found.append(await prober.probe(plan, candidate, work, beacon, TIMEOUT_S))
    return found


def test_a_miner_answers_probes_while_it_cannot_reach_the_chain(tmp_path: Path) -> None:
    found: list[Probe | None] = []

    async def story(ring: Ring) -> None:
        await ring.at(ASKED_AT)
        for miner in ring.miners():
            miner.chain_open.clear()
        found.extend(await probes(ring))
        for miner in ring.miners():
            miner.chain_open.set()

    play(tmp_path, story, miners=2)
    assert [probe is not None and probe.goodput_bytes_per_s > 0 for probe in found] == [True, True]


def test_a_probe_made_while_the_chain_stands_still_or_has_just_come_back_is_no_observation(tmp_path: Path) -> None:
    seen: list[tuple[bool, list[Probe | None]]] = []

    async def story(ring: Ring) -> None:
        await ring.at(ASKED_AT)
        asker = ring.nodes["validator-0"]
        assert asker.parts is not None
        await ring.kill("miner-0")  # for a miner that is away without an outage it is an observation
        (lost,) = [p for p in await probes(ring) if p is not None and p.goodput_bytes_per_s == 0.0]
        assert lost.unreached
        asker.chain_open.clear()
        await asyncio.sleep(30)
        seen.append((asker.parts.clock.steady, await probes(ring)))
        asker.chain_open.set()
        await asyncio.sleep(1)
        seen.append((asker.parts.clock.steady, await probes(ring)))
        await asyncio.sleep(5)
        seen.append((asker.parts.clock.steady, [p for p in await probes(ring) if p is not None]))

    play(tmp_path, story, miners=2)
    assert [steady for steady, _ in seen] == [False, False, True]
    assert seen[0][1] == seen[1][1] == [None, None] and len(seen[2][1]) == 2
