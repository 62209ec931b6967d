"""Rounds that overlap, in the simulator: one state, every honest audit passes, whoever dies, joins or lies."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distributed_training.localnet.attacks import Adversary, known_attacks
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.loop import run
from distributed_training.simulation.options import FaultKind, SimOptions
from distributed_training.simulation.swarm import SimResult, Swarm, simulate
from distributed_training.simulation.world import World, make_world

OVERLAP = SimOptions(miners=4, rounds=5, steps=8, seed=3, constants=("timing.overlap=true",))


def told(options: SimOptions) -> tuple[SimResult, list[tuple[float, str, dict[str, Any]]]]:
    out = io.StringIO()
    result = simulate(options, events=out)
    return result, [tuple(json.loads(line)) for line in out.getvalue().splitlines()]


def staged(
    root: Path, incidents: Sequence[Incident], alter: Callable[[World], None] = lambda world: None, **options: Any
) -> tuple[Swarm, list[tuple[float, str, dict[str, Any]]]]:
    """A run with these incidents alone."""
    out = io.StringIO()
    world = make_world(replace(OVERLAP, **options), root, out)
    alter(world)
    swarm = Swarm(world, tuple(incidents))
    run(swarm.run(lambda row: None))
    return swarm, [tuple(json.loads(line)) for line in out.getvalue().splitlines()]


def audits(events: Sequence[tuple[float, str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [event for _, _, event in events if event["event"] == "audit" and event["verdict"] is not None]


def test_a_round_is_trained_while_the_former_one_is_averaged_and_every_audit_passes() -> None:
    result, events = told(OVERLAP)
    assert result.violations == () and all(row.applied and row.included == 4 for row in result.rows)
    seen = audits(events)
    assert {event["round"] for event in seen} == {0, 1, 2, 3} and all(event["verdict"] == "pass" for event in seen)
    assert all(event["error"] == 0.0 for event in seen if event["depth"] < 6), "bit for bit"
    for name in (f"miner-{i}" for i in range(4)):
        mine = [(at, event) for at, who, event in events if who == name]
        begins = {e["round"]: at for at, e in reversed(mine) if e["event"] == "phase" and e["phase"] == "train"}
        settles = {e["round"]: at for at, e in mine if e["event"] == "round"}
        assert all(begins[index + 1] < settles[index] for index in range(4)), name
        assert 5 not in begins, "nothing is trained beyond the last round"
    again, _ = told(OVERLAP)
    assert (again.digest, again.rows) == (result.digest, result.rows)


def test_a_slow_miner_trains_nearly_all_the_time() -> None:
    _, events = told(OVERLAP)
    shares = []
    for name in (f"miner-{i}" for i in range(4)):
        seconds = [e["seconds"] for _, who, e in events if who == name and e["event"] == "train" and e["round"] > 0]
        steps = [e["steps"] for _, who, e in events if who == name and e["event"] == "train" and e["round"] > 0]
        if max(steps) < 8:  # it never came to the most of a round
            shares.append(sum(seconds) / len(seconds) / 54)
    assert shares and min(shares) > 0.85, "a step that does not fit any more is not begun"


@pytest.mark.parametrize("faults", ["churn", "crash", "freeze", "all"])
def test_overlapping_rounds_keep_every_promise_under_faults(faults: FaultKind) -> None:
    result, events = told(replace(OVERLAP, miners=6, rounds=6, faults=faults, seed=7))
    assert result.violations == () and result.incidents
    assert [event for event in audits(events) if event["verdict"] != "pass"] == []


@pytest.mark.parametrize("at_block", [54, 94, 104, 119, 143])
def test_a_miner_that_is_killed_in_any_phase_loses_a_round_at_most_and_is_accused_by_nobody(
    tmp_path: Path, at_block: int
) -> None:
    """Blocks of round 0's training, its exchange, its settling beside round 1's training, that, and its commit."""
    swarm, events = staged(tmp_path, [Incident("kill", at_block, at_block + 8.0, ("miner-1",))])
    assert swarm.violations == []
    assert [event for event in audits(events) if event["verdict"] != "pass"] == []
    uid = 4
    included = [e["included"] for _, who, e in events if who == "owner" and e["event"] == "round"]
    assert sum(uid not in row for row in included) <= 2 and uid in included[-1] and uid in included[-2]


def test_a_validator_that_was_away_audits_again_and_finds_nothing_wrong(tmp_path: Path) -> None:
    swarm, events = staged(tmp_path, [Incident("kill", 124.0, 134.0, ("validator-0",))], rounds=6)
    assert swarm.violations == []
    assert [event for event in audits(events) if event["verdict"] != "pass"] == []
    mine = {e["round"] for _, who, e in events if who == "validator-0" and e["event"] == "audit" and e["verdict"]}
    assert {3, 4} <= mine


def test_a_round_that_nobody_can_average_is_discarded_and_training_goes_on_from_the_old_state(tmp_path: Path) -> None:
    """Everybody's network is cut between s+D and s+Y of round 1."""
    nodes = tuple(f"miner-{i}" for i in range(4))
    swarm, events = staged(tmp_path, [Incident("freeze", 147.0, 167.0, nodes)], rounds=6)
    assert swarm.violations == []
    rounds = {e["round"]: e for _, who, e in events if who == "owner" and e["event"] == "round"}
    assert not rounds[1]["applied"] and rounds[1]["state_root"] == rounds[0]["state_root"]
    assert rounds[3]["applied"] and len(rounds[3]["included"]) == 4
    assert [event for event in audits(events) if event["verdict"] != "pass"] == []


def test_a_joiner_begins_at_the_state_and_goes_on_from_its_own_end_afterwards(tmp_path: Path) -> None:
    swarm, events = staged(tmp_path, [Incident("add", 124.0, 124.0, ("miner-9",))], rounds=7)
    assert swarm.violations == []
    seen = [event for event in audits(events) if event["target"] == 7]
    assert seen and all(event["verdict"] == "pass" for event in seen)


@functools.cache
def liars() -> tuple[SimResult, list[tuple[float, str, dict[str, Any]]]]:
    attacks = tuple(Adversary(known_attacks()[name], 1) for name in ("false-shift", "hidden-start"))
    return told(replace(OVERLAP, miners=5, adversaries=attacks))


def test_who_lies_about_its_shift_is_failed_and_nobody_else() -> None:
    result, events = liars()
    failed = [event for event in audits(events) if event["verdict"] == "fail"]
    assert {event["target"] for event in failed} == {6} and {event["reason"] for event in failed} <= {
        "gradient",
        "norm",
    }
    assert {event["round"] for event in failed} == {1, 2, 3}, "round 0 began at the state"
    assert result.pay[-1][6] == 0.0 and result.pay[-1][3] > 0.0


def test_who_does_not_give_where_it_began_has_no_credit_for_that_round() -> None:
    result, events = liars()
    seen = [e for _, _, e in events if e["event"] == "audit" and e["target"] == 7 and e["round"] > 0]
    assert seen and {e["reason"] for e in seen} == {"where training began not served"}
    assert all(e["verdict"] is None for e in seen), "it is no proof of a lie"
    assert result.pay[-1][7] < result.pay[-1][3]
