"""A reducer that still reaches the chain and nobody else: what it would publish is lost, so its backup's counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ring import LINK, Ring, play

from distributed_training.network.links import LinkProfile

Fault = Callable[[Ring, str], None]
# As slices are larger than what a real connection takes without its peer.
SMALL_WINDOW = replace(LINK, window_bytes=64)
SLOW_LINK = LinkProfile(up_bytes_s=(1600, 1600), down_bytes_s=(1e5, 1e5), latency_s=(0.005, 0.005))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def cut(ring: Ring, name: str) -> None:
    ring.cut(name)


def crawl(ring: Ring, name: str) -> None:
    ring.slow(name, 16.0)


def mute(ring: Ring, name: str) -> None:
    """What others send arrives, its own crawls."""
    ring.nic(name).up_bytes_s = 16.0


def of_round_0(ring: Ring, *without: str) -> dict[str, object]:
    """What everybody else says of round 0, alike."""
    keys = ("applied", "counted", "backed_up", "included", "credit", "state_root")
    seen = [{k: n.rounds[0][k] for k in keys} for n in ring.nodes.values() if n.name not in without]
    assert all(event == seen[0] for event in seen), seen
    return seen[0]


@pytest.mark.parametrize("miners", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("fault", "when", "profile"),
    [(cut, 10, LINK), (cut, 25.5, LINK), (cut, 26.45, SLOW_LINK), (crawl, 10, LINK), (crawl, 25.5, LINK)],
    ids=["cut@train", "cut@before-scatter", "cut@mid-scatter", "slow@train", "slow@before-scatter"],
)
def test_a_reducer_on_a_dead_line_leaves_its_slice_to_its_backup(
    tmp_path: Path, miners: int, fault: Fault, when: float, profile: LinkProfile
) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(when)
        fault(ring, ring.order[1])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))

    ring = play(tmp_path, story, miners=miners, profile=profile)
    event = of_round_0(ring, ring.order[1])
    assert (event["applied"], event["counted"], event["backed_up"]) == (True, list(range(miners)), [1])


@pytest.mark.parametrize("miners", [2, 3, 4, 5])
@pytest.mark.parametrize("then_cut", [False, True], ids=["slow@before-scatter", "cut@mid-scatter"])
def test_a_reducer_that_has_everything_and_whose_own_chunks_reach_nobody_leaves_its_slice_to_its_backup(
    tmp_path: Path, miners: int, then_cut: bool
) -> None:
    """What it would publish is lost: as its chunks, so its slice."""

    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        mute(ring, ring.order[1])
        if then_cut:
            await ring.at(26.45)
            ring.cut(ring.order[1])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))

    ring = play(tmp_path, story, miners=miners, profile=SMALL_WINDOW)
    event = of_round_0(ring, ring.order[1])
    assert (event["applied"], event["counted"], event["backed_up"]) == (True, list(range(miners)), [1])


def test_a_slow_uplink_in_time_costs_nobody_a_slice(tmp_path: Path) -> None:
    """It waits until most others have its chunks, and publishes then."""

    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        ring.nic(ring.order[1]).up_bytes_s = 2000.0
        await ring.settled(0)

    event = of_round_0(play(tmp_path, story))
    assert (event["counted"], event["backed_up"]) == ([0, 1, 2, 3], [])
    assert len(event["included"]) == 4  # type: ignore[arg-type]


def test_a_reducer_that_slept_over_the_cut_off_leaves_its_slice_to_its_backup(tmp_path: Path) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        ring.freeze(ring.order[1])
        await ring.at(32.5)
        ring.thaw(ring.order[1])
        await ring.settled(0)

    ring = play(tmp_path, story)
    event = of_round_0(ring)
    assert (event["counted"], event["backed_up"]) == ([0, 1, 2, 3], [1])


@pytest.mark.parametrize("miners", [2, 3, 5])
def test_a_lone_survivor_publishes_what_it_has(tmp_path: Path, miners: int) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        for name in ring.order[1:]:
            await ring.kill(name)
        await ring.settled(0, ring.order[0], "validator-0")

    ring = play(tmp_path, story, miners=miners)
    event = of_round_0(ring, *ring.order[1:])
    assert (event["applied"], event["counted"]) == (True, [0, miners - 1]), "its own and the one it stands in for"


def test_the_side_that_the_validator_is_on_publishes_and_the_other_does_not(tmp_path: Path) -> None:
    """Two of five, and the validator: they are out of touch with most reducers, and still those who count."""

    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        ring.cut(*ring.order[2:])
        await ring.settled(0, "validator-0", *ring.order[:2])

    ring = play(tmp_path, story, miners=5)
    event = of_round_0(ring, *ring.order[2:])
    assert event["applied"] and {0, 1} <= set(event["counted"])  # type: ignore[arg-type]


def test_one_fault_fills_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Six miners and a validator, a reducer dead for the whole exchange: a line where it begins, one where it ends."""
    caplog.set_level(logging.DEBUG, "distributed_training")

    async def story(ring: Ring) -> None:
        await ring.at(25.5)
        await ring.kill(ring.order[1])
        await ring.settled(0, *(n for n in ring.nodes if n != ring.order[1]))

    play(tmp_path, story, miners=6)
    told = [r for r in caplog.records if r.name.startswith("distributed_training.averaging")]
    tries = [r.getMessage() for r in told if " to its reducer" in r.getMessage()]
    assert 5 <= len(tries) <= 2 * 5, "\n".join(tries)
    seen = [r.getMessage() for r in told if r.levelno > logging.DEBUG]
    assert len(seen) <= 12, "\n".join(seen)
