"""A validator whose own line is dead while it audits: it says so and holds it against nobody."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distributed_training.protocol.types import Round
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.loop import run
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import Swarm
from distributed_training.simulation.world import make_world


def played(
    root: Path, round_index: int, span: Callable[[Round], tuple[float, float]]
) -> list[tuple[str, dict[str, Any]]]:
    """(node, event) of three rounds in which the line of one of two validators is cut from a block to another."""
    torch.set_num_threads(1)
    out = io.StringIO()
    world = make_world(SimOptions(miners=4, rounds=3, seed=3), root, out)
    swarm = Swarm(world, (Incident("cut", *span(world.manifest.round(round_index)), ("validator-0",)),))
    run(swarm.run(lambda row: None))
    assert not swarm.violations
    return [(name, event) for _, name, event in map(json.loads, out.getvalue().splitlines())]


def test_a_validator_with_a_dead_line_records_no_goodput(tmp_path: Path) -> None:
    events = played(tmp_path, 0, lambda r: (r.map_block + 1.0, r.end_block + 10.0))

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
    events = played(tmp_path, 1, lambda r: (r.commit_block + 0.5, r.map_block + 1.0))
    rounds = [e for n, e in events if n == "miner-0" and e["event"] == "round"]
    assert [e["applied"] for e in rounds] == [True] * 3 and rounds[1]["counted"] == rounds[0]["counted"]
    (fault,) = [e for n, e in events if n == "validator-0" and e["event"] == "fault"]
    assert (fault["round"], fault["what"]) == (1, "map") and "speaks against nobody" in fault["detail"]
