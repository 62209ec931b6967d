"""A small faults table on real processes, and the rules by which its rows are judged."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fault_cells import Cell, Trial, chosen_cells, every_cell, schedule
from benchmarks.fault_rows import problem
from benchmarks.fault_subnet import create
from benchmarks.faults import measure
from distributed_training.errors import ConfigError

pytestmark = pytest.mark.alone

BLOCK_S = 0.3
GOOD: dict[str, Any] = {
    "fault": "kill", "point": "train", "round": 2, "bytes_in_flight": 0, "hung": False, "identical": True,
    "effect": ["ended by signal 9"],
}  # fmt: skip


def free_port_base(count: int) -> int:
    """The first of `count` ports below the range from which the system gives out its own."""
    for base in range(21_000, 30_000, count):
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.2", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_four_faults_in_one_round_of_real_processes(tmp_path: Path) -> None:
    """A killed sender, a frozen reducer, a holder that is cut off, a reducer that lies, all at once."""
    cells = ("kill@mid-scatter", "freeze@reducing", "cut@after-output", "lie@before-output")
    trials = [Trial(Cell(*c.split("@")), 0, f"saboteur-{i}") for i, c in enumerate(cells)]
    honest = ("validator-0", "miner-0", "miner-1", "miner-2")
    subnet = create(tmp_path, [t.name for t in trials], BLOCK_S, free_port_base(8), honest)
    result = measure(subnet, trials)
    assert result["failures"] == []
    assert [f"{r['fault']}@{r['point']}" for r in result["rows"]] == list(cells)
    assert all(r["applied"] and 0 <= r["credit_lost"] < 1 for r in result["rows"])
    assert result["rows"][0]["credit_lost"] > 0, "the killed sender's chunks are missing"
    assert "ended by signal 9" in result["rows"][0]["effect"]
    assert "stopped" in result["rows"][1]["effect"]
    assert result["rounds"][1]["applied"], "the next round is none the worse for it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes_in_flight": None}, "did not come about"),
        ({"hung": True}, "had not settled"),
        ({"identical": False}, "different states"),
        ({"effect": []}, "nobody noticed"),
    ],
)
def test_a_row_fails_for_each_reason(change: dict[str, Any], words: str) -> None:
    assert problem(GOOD) is None
    assert words in (problem(GOOD | change) or "")


def test_every_cell_has_a_hotkey_and_a_round_of_its_own() -> None:
    cells = every_cell()
    assert len(cells) == len(set(cells)) >= 5 * 8
    trials = schedule(cells)
    assert sorted(map(str, (t.cell for t in trials))) == sorted(map(str, cells))
    assert len({t.round for t in trials}) == len(trials)
    miners = [t.name for t in trials if not t.cell.validator]
    assert len(set(miners)) == len(miners), "a reducer that failed is not eligible for eight rounds"
    slot = sorted(t.round for t in trials if t.cell.validator)
    assert all(b - a >= 5 for a, b in itertools.pairwise(slot))


def test_cells_are_chosen_by_name() -> None:
    assert [str(c) for c in chosen_cells("lie@*,kill@train", False)][-1] == "kill@train"
    assert len(chosen_cells("*@train", False)) == 5
    assert len(chosen_cells(None, True)) == 4
    with pytest.raises(ConfigError, match="no such cell"):
        chosen_cells("maim@train", False)
