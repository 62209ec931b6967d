"""The all-reduce under faults, on a virtual clock (ring.py): nothing hangs, nothing diverges, who fails pays.

Timing of the rounds, in blocks of a second after their start: work hashes by 26, then chunks; senders may send until
32; outputs on chain by 36; slice maps by 44; the next round begins at 54.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from ring import LINK, D, Ring, RingNode, play

from distributed_training.averaging.store import RoundStore
from distributed_training.localnet.judge.recompute import counted_outputs
from distributed_training.network.links import LinkProfile
from distributed_training.protocol.rules.duty import tolerant
from distributed_training.roles.follower import Follower
from distributed_training.training.outer import initial_state

Fault = Callable[[Ring, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def same(ring: Ring, round_index: int, *without: str) -> RingNode:
    """Everybody else settled the round alike, in time; one of them."""
    nodes = [n for n in ring.nodes.values() if n.name not in without]
    keys = ("applied", "reason", "counted", "backed_up", "included", "credit", "state_root")
    seen = [{k: n.rounds[round_index][k] for k in keys} for n in nodes]
    assert all(event == seen[0] for event in seen), seen
    return nodes[0]


async def kill_before(ring: Ring, name: str) -> None:
    await ring.at(25.5)
    await ring.kill(name)


async def freeze_before(ring: Ring, name: str) -> None:
    await ring.at(25.5)
    ring.freeze(name)


async def kill_during(ring: Ring, name: str) -> None:
    await ring.at(26.6)  # the links of this test carry a slice in about a second
    await ring.kill(name)


async def freeze_during(ring: Ring, name: str) -> None:
    await ring.at(26.6)
    ring.freeze(name)


async def kill_after(ring: Ring, name: str) -> None:
    """It has every chunk, has said so, and goes on beating; its hash is not on chain when it dies."""
    await ring.at(25.5)
    ring.nodes[name].may_commit.clear()
    await ring.at(30.5)
    await ring.kill(name)


async def freeze_after(ring: Ring, name: str) -> None:
    await ring.at(25.5)
    ring.nodes[name].may_commit.clear()
    await ring.at(30)
    ring.freeze(name)


SLOW_LINK = LinkProfile(up_bytes_s=(1500, 1500), down_bytes_s=(1e5, 1e5), latency_s=(0.005, 0.005))
# Fault, links, and which shares of the chunks include the failed reducer as a sender: two of seven are its own.
POINTS: list[tuple[Fault, LinkProfile, float, float]] = [
    (kill_before, LINK, 0.0, 0.0),
    (freeze_before, LINK, 0.0, 0.0),
    (kill_during, SLOW_LINK, 0.0, 5 / 7),
    (freeze_during, SLOW_LINK, 0.0, 5 / 7),
    (kill_after, LINK, 5 / 7, 5 / 7),
    (freeze_after, LINK, 5 / 7, 5 / 7),
]


@pytest.mark.parametrize(("fault", "profile", "least", "most"), POINTS, ids=[p[0].__name__ for p in POINTS])
def test_a_backup_reduces_the_slice_of_a_reducer_that_fails(
    tmp_path: Path, fault: Fault, profile: LinkProfile, least: float, most: float
) -> None:
    victim = ""

    async def story(ring: Ring) -> None:
        nonlocal victim
        victim = ring.order[1]
        await fault(ring, victim)
        await ring.settled(1, *(n for n in ring.nodes if n != victim))

    ring = play(tmp_path, story, profile=profile)
    node = same(ring, 0, victim)
    event, lost = node.rounds[0], ring.nodes[victim].uid
    assert (event["applied"], event["counted"], event["backed_up"]) == (True, [0, 1, 2, 3], [1])
    others = sorted(n.uid for n in ring.miners() if n.name != victim)
    assert [uid for uid in event["included"] if uid != lost] == others
    assert all(event["credit"][str(uid)] == 1.0 for uid in others)
    assert tolerant(least) <= event["credit"][str(lost)] <= tolerant(most)
    assert node.follower is not None
    failed = node.follower.state.carry.failed[0]
    assert failed == (ring.nodes[victim].key.public_key,), "its backup did the work, so it did not"
    assert same(ring, 1, victim).rounds[1]["applied"]


def test_the_offline_check_recomputes_what_a_backup_reduced(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await kill_before(ring, ring.order[1])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))
        parts = ring.nodes["validator-0"].parts
        assert parts is not None
        follower = Follower(parts, 0, initial_state(np.zeros(D, np.float32), ring.run.average), trusted=True)
        plan = await follower.plan(await follower.prepare())
        claims = await parts.butterfly.collector.wanted(plan, plan.round.output_block)
        assert [j for j, claim in claims.items() if claim.by_backup] == [1]
        stores = {name: RoundStore(tmp_path / name) for name in ring.nodes}
        outputs, same_bytes, problems = counted_outputs(plan, claims, stores, ring.run)
        assert (sorted(outputs), same_bytes, problems) == ([0, 1, 2, 3], 4, [])

    play(tmp_path, story)


@pytest.mark.parametrize("miners", [1, 2, 3])
def test_small_groups(tmp_path: Path, miners: int) -> None:
    async def story(ring: Ring) -> None:
        await ring.settled(1)

    ring = play(tmp_path, story, miners=miners)
    for index in (0, 1):
        event = same(ring, index).rounds[index]
        assert (event["counted"], event["backed_up"], len(event["included"])) == (list(range(miners)), [], miners)


@pytest.mark.parametrize("miners", [2, 3])
def test_small_groups_lose_one(tmp_path: Path, miners: int) -> None:
    async def story(ring: Ring) -> None:
        await kill_before(ring, ring.order[0])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[0]))

    ring = play(tmp_path, story, miners=miners)
    event = same(ring, 0, ring.order[0]).rounds[0]
    assert (event["counted"], event["backed_up"], len(event["included"])) == (list(range(miners)), [0], miners - 1)


def test_a_reducer_and_its_backup_die_and_the_slice_is_zero_for_everybody(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await kill_before(ring, ring.order[1])
        await ring.kill(ring.order[2])
        await ring.settled(0, *(n for n in ring.nodes if n not in ring.order[1:3]))

    ring = play(tmp_path, story, miners=5)
    node = same(ring, 0, *ring.order[1:3])
    assert (node.rounds[0]["counted"], node.rounds[0]["backed_up"]) == ([0, 2, 3, 4], [2])
    assert node.follower is not None
    params = node.follower.state.params.reshape(-1)
    assert not params[64:128].any() and params[:64].any() and params[128:].any()  # slice 1 of 5 is chunk 1 of 7


def test_a_reducer_dies_with_its_hash_on_chain_and_the_slice_is_zero_for_everybody(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(28.9)
        await ring.kill(ring.order[1])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))

    ring = play(tmp_path, story)
    event = same(ring, 0, ring.order[1]).rounds[0]
    assert (event["applied"], event["counted"], event["backed_up"]) == (True, [0, 2, 3], [])
    assert set(event["credit"].values()) == {1.0}


@pytest.mark.parametrize("rate", [1.0, 400.0])
def test_a_slow_peer_costs_only_its_own_part(tmp_path: Path, rate: float) -> None:
    """At one byte a second nothing of it arrives; at 400 some chunks do, and they stay in."""

    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        ring.slow(ring.order[1], rate)
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))

    ring = play(tmp_path, story)
    event = same(ring, 0, ring.order[1]).rounds[0]
    slow = str(ring.nodes[ring.order[1]].uid)
    assert event["applied"] and {0, 2, 3} <= set(event["counted"])
    assert all(share == 1.0 for uid, share in event["credit"].items() if uid != slow)
    assert event["credit"][slow] == 0.0 if rate == 1.0 else 0.0 < event["credit"][slow] < 1.0


def test_a_sender_freezes_while_it_sends_and_its_chunks_stay_in(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        ring.slow(ring.order[3], 700.0)
        await ring.at(30)
        ring.freeze(ring.order[3])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[3]))

    ring = play(tmp_path, story, miners=4)
    credit = same(ring, 0, ring.order[3]).rounds[0]["credit"]
    assert 0.0 < credit[str(ring.nodes[ring.order[3]].uid)] < 1.0 and sorted(credit.values())[1:] == [1.0] * 3


def test_a_frozen_node_that_thaws_catches_up(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await freeze_before(ring, "miner-0")
        await ring.at(20, round_index=1)
        ring.thaw("miner-0")
        await ring.settled(2)

    ring = play(tmp_path, story)
    for index in (0, 1, 2):
        same(ring, index)
    assert ring.nodes["miner-0"].uid in same(ring, 2).rounds[2]["included"]


def test_everybody_dies_and_comes_back(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(30)
        for name in ring.nodes:
            await ring.kill(name)
        await ring.at(45)
        for name in ring.nodes:
            await ring.start(name)
        await ring.settled(1)

    ring = play(tmp_path, story, stakes=(1000.0, 1000.0))
    event = same(ring, 0).rounds[0]
    assert not event["applied"] and "too little validator stake" in event["reason"]
    assert same(ring, 1).rounds[1]["applied"]


def test_no_validator_is_alive_for_a_round(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(30)
        await ring.kill("validator-0")
        await ring.at(48)
        await ring.start("validator-0")
        await ring.settled(1)

    ring = play(tmp_path, story)
    assert not same(ring, 0).rounds[0]["applied"] and same(ring, 1).rounds[1]["applied"]


@pytest.mark.parametrize(("share", "applied"), [(0.5, True), (0.51, False)])
def test_two_validators_of_equal_stake_and_one_is_dead(tmp_path: Path, share: float, applied: bool) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(30)
        await ring.kill("validator-1")
        await ring.settled(0, *(n for n in ring.nodes if n != "validator-1"))

    ring = play(tmp_path, story, stakes=(1000.0, 1000.0), min_map_share=share)
    assert same(ring, 0, "validator-1").rounds[0]["applied"] is applied


def test_a_majority_that_clears_bits_zeroes_the_slice_for_everybody(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.settled(0)

    lies = {"validator-0": lambda bits: [False, *bits[1:]]}
    ring = play(tmp_path, story, stakes=(600.0, 500.0), lies=lies)
    node = same(ring, 0)
    assert node.rounds[0]["counted"] == [1, 2, 3] and node.follower is not None
    first = node.follower.state.params[:64]
    assert np.array_equal(first, np.zeros_like(first))


def test_a_cancelled_round_leaves_no_task_behind(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(29.2)
        names = {task.get_name().rstrip("0123456789 ") for task in asyncio.all_tasks()}
        assert {"send slice", "reduce"} <= names, "the round is under way"
        for name in ring.nodes:
            await ring.kill(name)
        assert {task.get_name() for task in asyncio.all_tasks()} == {task.get_name() for task in own}

    own: list[asyncio.Task[None]] = []

    async def alone(ring: Ring) -> None:
        task = asyncio.current_task()
        assert task is not None
        own.append(task)
        await story(ring)

    play(tmp_path, alone, profile=SLOW_LINK)
