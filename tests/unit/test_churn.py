"""The churn benchmark: its plan, and what it calls a failure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.churn import add_arguments, churn_options, plan
from benchmarks.churn_rows import failures
from distributed_training.localnet.layout import node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.kills import RECOVERY_ROUNDS

SPECS = node_specs(parse_options(["--miners", "5"]))


@given(st.integers(4, 60), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_one_fault_in_every_round_and_time_to_recover(rounds: int, most: int, seed: int) -> None:
    kills, added = plan(SPECS, rounds, most, seed)
    assert (kills, added) == plan(SPECS, rounds, most, seed)
    assert sorted([k.round for k in kills] + [a.round for a in added]) == list(range(1, rounds))
    assert len(added) <= most and [a.name for a in added] == [f"extra-{i}" for i in range(len(added))]
    born = {a.name: a.round for a in added}
    for kill in kills:
        others = [k for k in kills if k is not kill and abs(k.round - kill.round) <= RECOVERY_ROUNDS]
        assert kill.name not in {k.name for k in others}
        assert kill.role != "validator" or "validator" not in {k.role for k in others}
        assert kill.round - born.get(kill.name, -99) > RECOVERY_ROUNDS


def test_its_options_are_the_demos(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = churn_options(parser.parse_args(["--rounds", "4", "--seed", "9"]), tmp_path)
    assert (options.rounds, options.miners, options.validators, options.seed) == (4, 5, 2, 9)
    assert options.block_s == 0.5 and options.model == tmp_path / "model.json"


def row(index: int, **other: Any) -> dict[str, Any]:
    return {"round": index, "late": [], "identical": True, "fault": "kill miner-0 at train"} | other


TOTALS = {"loss_first": 5.5, "loss_last": 4.0, "survivors": 0}


def test_nothing_is_a_failure_when_all_is_well() -> None:
    assert failures([row(0, fault=None), row(1), row(2, fault=None)], TOTALS, {"problems": []}, 2) == []


@pytest.mark.parametrize(
    ("rows", "totals", "checked", "found"),
    [
        ([row(0), row(1, late=["owner"])], {}, {"problems": []}, "round 1: owner late"),
        ([row(0), row(1, identical=False)], {}, {"problems": []}, "round 1: live nodes differ"),
        ([row(0), row(1, fault=None)], {}, {"problems": []}, "round 1: nothing was done to anybody"),
        ([row(0)], {}, {"problems": []}, "round 1: nobody settled it"),
        ([row(0), row(1)], {}, {"problems": ["round 0: slice 2"]}, "offline check: round 0: slice 2"),
        ([row(0), row(1)], {}, {}, "offline check: did not run to its end"),
        ([row(0), row(1)], {"loss_last": 5.6}, {"problems": []}, "held-out loss did not fall: 5.5 to 5.6"),
        ([row(0), row(1)], {"loss_last": None}, {"problems": []}, "held-out loss did not fall: 5.5 to None"),
        ([row(0), row(1)], {"survivors": 2}, {"problems": []}, "2 processes outlived their node"),
    ],
)
def test_each_failure_is_named(
    rows: list[dict[str, Any]], totals: dict[str, Any], checked: dict[str, Any], found: str
) -> None:
    assert failures(rows, TOTALS | totals, checked, 2) == [found]
