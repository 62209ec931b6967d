"""A slice counts and nobody can give it: it is zero for everybody a round later, and nobody ends."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from ring import Ring, RingNode, play

TRUE = {"validator-0": lambda bits: [True for _ in bits]}  # claims whatever there is, whenever it says something


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


async def nobody_gives_slice_1(ring: Ring) -> str:
    """Its reducer dies with its hash on chain: no byte of the slice exists any more."""
    await ring.at(28.9)
    await ring.kill(ring.order[1])
    return ring.order[1]


async def late(ring: Ring, *names: str) -> None:
    """Their maps of round 0 are included after s+Y only."""
    for name in names:
        ring.nodes[name].may_commit.clear()
    await ring.at(45)
    for name in names:
        ring.nodes[name].may_commit.set()


def alike(ring: Ring, round_index: int, *without: str) -> RingNode:
    """Everybody has settled the round the same way; one of them."""
    found = [n for n in ring.nodes.values() if n.name not in without]
    keys = ("applied", "reason", "counted", "credit", "state_root")
    seen = [{key: n.rounds[round_index][key] for key in keys} for n in found]
    assert all(said == seen[0] for said in seen), seen
    return found[0]


def none_ended(ring: Ring) -> bool:
    return not any(n.task is not None and n.task.done() for n in ring.nodes.values())


def test_who_held_the_slice_joins_the_others_and_so_does_who_comes_later(tmp_path: Path) -> None:
    """Most of the stake is included late, so two fifths of it decide alone, and lie; the reducer gives its slice to
    nobody and goes on alone, to the round that is discarded for everybody."""
    away: list[str] = []

    async def story(ring: Ring) -> None:
        away.extend([ring.order[1], ring.order[3]])
        await late(ring, "validator-1", "validator-2")
        await ring.at(50)
        await ring.kill(away[1])
        await ring.at(1, round_index=2)
        await ring.start(away[1])
        kept = [n.parts.store.states.rounds() for n in ring.nodes.values() if n.parts and n.name not in away]
        assert all(1 not in rounds for rounds in kept), "who starts at 1 would not discard it"
        await ring.settled(3)

    ring = play(tmp_path, story, stakes=(600.0, 500.0, 400.0), lies=TRUE, miners=5, withholds=1, heals=True)
    node = alike(ring, 3)
    assert node.rounds[3]["applied"] and node.rounds[0]["counted"] == [0, 2, 3, 4]
    assert node.follower is not None
    assert ring.nodes[away[0]].key.public_key in node.follower.state.carry.failed[0]
    assert alike(ring, 1).rounds[1]["reason"] == "a slice of a former round was lost"
    alike(ring, 0)
    for index in (0, 1, 2, 3):
        assert len({n.rounds[index]["state_root"] for n in ring.nodes.values()}) == 1
    faults = [(n.name, e["what"]) for n in ring.nodes.values() for e in n.events if e["event"] == "fault"]
    assert faults == [(away[0], "state")]


def test_a_majority_of_all_stake_that_lies_stops_the_run_and_ends_nobody(tmp_path: Path) -> None:
    lying = [True]

    async def story(ring: Ring) -> None:
        gone = await nobody_gives_slice_1(ring)
        await ring.at(20, round_index=3)
        assert none_ended(ring)
        assert not any(n.rounds for n in ring.nodes.values() if n.name != gone), "nobody has a state of its own"
        lying.clear()
        await ring.settled(5)

    lies = {"validator-0": lambda bits: [True for _ in bits] if lying else bits}
    ring = play(tmp_path, story, stakes=(600.0, 500.0), lies=lies, min_map_share=0.5)
    left = [n for n in ring.nodes.values() if n.task is not None or n.rounds]
    assert left and all(n.rounds[5]["applied"] for n in left)


def test_a_validator_that_catches_up_says_of_no_round_that_is_over_that_it_lacks_it(tmp_path: Path) -> None:
    """Its first seconds are slow. Maps written then would cost it the quota, and so the map of this round."""
    said: list[int] = []

    async def story(ring: Ring) -> None:
        await ring.at(10)
        await ring.kill("validator-1")
        now = ring.run.round(2)
        await ring.at(now.output_block - now.start_block + 0.5, round_index=2)
        await ring.start("validator-1")
        ring.freeze("validator-1")
        await asyncio.sleep(1.5)
        ring.thaw("validator-1")
        await ring.settled(2)
        for block in range(now.output_block, now.map_block + 1):
            me = ring.ledger.roster(block).by_public_key(ring.nodes["validator-1"].key.public_key)
            if me is not None and me.commitment is not None and me.commitment.second_round is not None:
                said.append(me.commitment.second_round)

    play(tmp_path, story, stakes=(600.0, 500.0), miners=3)
    assert set(said) == {2}
