"""A validator whose own line is dead while it audits: it says so and holds it against nobody."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch

from distributed_training.simulation.faults import Incident
from distributed_training.simulation.loop import run
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import Swarm
from distributed_training.simulation.world import make_world


def test_a_validator_with_a_dead_line_records_no_goodput(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    out = io.StringIO()
    world = make_world(SimOptions(miners=4, rounds=3, seed=3), tmp_path, out)
    round_ = world.manifest.round(0)
    dead = Incident("cut", round_.map_block + 1.0, round_.end_block + 10.0, ("validator-0",))
    swarm = Swarm(world, (dead,))
    run(swarm.run(lambda row: None))
    assert not swarm.violations
    events = [(name, event) for _, name, event in map(json.loads, out.getvalue().splitlines())]

    def audits(name: str) -> list[dict[str, object]]:
        return [e for n, e in events if n == name and e["event"] == "audit" and e["round"] == 0]

    assert len(audits("validator-0")) == len(audits("validator-1")) == 4
    assert all(e["goodput_bytes_per_s"] for e in audits("validator-1"))
    for audit in audits("validator-0"):
        assert (audit["goodput_bytes_per_s"], audit["verdict"], audit["reason"]) == (None, "pass", "ok")
    faults = [e for n, e in events if n == "validator-0" and e["event"] == "fault"]
    assert [(e["round"], e["what"]) for e in faults] == [(0, "probe")] and "none of 4 probes" in faults[0]["detail"]


def test_a_validator_that_no_slice_reached_speaks_against_none(tmp_path: Path) -> None:
    """Of two with equal stake: its empty map would leave no slice with more than half."""
    torch.set_num_threads(1)
    out = io.StringIO()
    world = make_world(SimOptions(miners=4, rounds=3, seed=3), tmp_path, out)
    round_ = world.manifest.round(1)
    dead = Incident("cut", round_.commit_block + 0.5, round_.map_block + 1.0, ("validator-0",))
    swarm = Swarm(world, (dead,))
    run(swarm.run(lambda row: None))
    assert not swarm.violations
    events = [(name, event) for _, name, event in map(json.loads, out.getvalue().splitlines())]
    rounds = [e for n, e in events if n == "miner-0" and e["event"] == "round"]
    assert [e["applied"] for e in rounds] == [True] * 3 and rounds[1]["counted"] == rounds[0]["counted"]
    (fault,) = [e for n, e in events if n == "validator-0" and e["event"] == "fault"]
    assert (fault["round"], fault["what"]) == (1, "map") and "speaks against nobody" in fault["detail"]
