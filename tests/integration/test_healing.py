"""Nodes whose state goes wrong, or that cannot get a slice for too long: they join again and are as all others."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ring import Ring, RingNode, play

LAST = 4
STAKES = (1000.0, 1000.0, 1000.0)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def flip(node: RingNode) -> None:
    """One bit of one parameter, as a memory fault does: the node knows nothing of it."""
    assert node.follower is not None
    params = node.follower.state.params.copy()
    params[7:8].view(np.uint32)[0] ^= 1 << 22
    node.follower.state = replace(node.follower.state, params=params)


def check_alike(ring: Ring, round_index: int) -> None:
    nodes = list(ring.nodes.values())
    assert len({n.rounds[round_index]["state_root"] for n in nodes}) == 1
    states = [n.follower.state.params.tobytes() for n in nodes if n.follower is not None]
    assert len(states) == len(nodes) and len(set(states)) == 1


@pytest.mark.parametrize("name", ["miner-0", "validator-0"])
def test_a_flipped_bit_is_found_and_the_node_joins_again(tmp_path: Path, name: str) -> None:
    async def story(ring: Ring) -> None:
        await ring.settled(0)
        await ring.at(10, round_index=1)
        flip(ring.nodes[name])
        await ring.settled(LAST)

    ring = play(tmp_path, story, stakes=STAKES, heals=True)
    node, other = ring.nodes[name], ring.nodes["miner-1"]
    assert node.rounds[1]["state_root"] != other.rounds[1]["state_root"], "the bit was flipped in round 1"
    (fault,) = [e for e in node.events if e["event"] == "fault"]
    assert (fault["round"], fault["what"]) == (2, "state") and "the majority of stake" in fault["detail"]
    check_alike(ring, LAST)
    assert not any(e for n in ring.nodes.values() if n is not node for e in n.events if e["event"] == "fault")
    if name == "miner-0":
        assert node.uid in other.rounds[LAST]["included"], "it works again"
        assert node.uid not in other.rounds[2]["included"], "what it made of a wrong state counts nowhere"


def test_trouble_while_it_joins_again_is_tried_again(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.settled(0)
        await ring.at(10, round_index=1)
        flip(ring.nodes["miner-0"])
        ring.nodes["miner-0"].troubles = 2
        await ring.settled(LAST)

    ring = play(tmp_path, story, stakes=STAKES, heals=True)
    faults = [e["what"] for e in ring.nodes["miner-0"].events if e["event"] == "fault"]
    assert faults == ["state", "round", "state", "round", "state"]
    check_alike(ring, LAST)


def test_who_lacks_slices_for_too_long_goes_on_from_a_later_state(tmp_path: Path) -> None:
    """Its line is dead from the exchange of round 0 until it has given the slices up."""

    async def story(ring: Ring) -> None:
        await ring.at(28.9)
        ring.cut("miner-0")
        await ring.at(50, round_index=1)
        ring.links.heal()
        await ring.settled(LAST)

    ring = play(tmp_path, story, stakes=STAKES, heals=True)
    node = ring.nodes["miner-0"]
    (fault,) = [e for e in node.events if e["event"] == "fault"]
    assert fault["what"] == "state" and "nobody gave them to us within 1 rounds" in fault["detail"]
    assert min(node.rounds) > 0, "it went on from a later round's state"
    check_alike(ring, LAST)
    assert node.uid in ring.nodes["miner-1"].rounds[LAST]["included"]


def test_who_finds_no_other_state_says_so_and_ends(tmp_path: Path) -> None:
    seen: list[BaseException | None] = []

    async def story(ring: Ring) -> None:
        await ring.at(28.9)
        ring.cut("miner-0")
        await ring.settled(2, "miner-1")
        task = ring.nodes["miner-0"].task
        assert task is not None and task.done()
        seen.append(task.exception())

    play(tmp_path, story, stakes=STAKES, heals=True)
    (error,) = seen
    assert isinstance(error, BaseExceptionGroup)
    assert "there is no other state to join from" in str(error.exceptions[0])
