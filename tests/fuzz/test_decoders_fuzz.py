"""A short seeded run of every target, and the replay of every input that once broke something."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_decoders import DECODERS
from fuzz_engine import ACCEPTED, CORPUS, Run, Target, measured, outcome, random_inputs, saved_inputs

SEED = 1
RUNS = 1500


def name_of(target: Target) -> str:
    return target.name


@pytest.mark.parametrize("target", DECODERS, ids=name_of)
def test_a_short_run_finds_nothing_and_reaches_deep(target: Target, tmp_path: Path) -> None:
    run = Run(target, corpus=tmp_path)
    random_inputs(target, RUNS, SEED, run)
    ends = run.result.ends
    assert ends[ACCEPTED] >= 1 and ends.total() == RUNS, ends
    assert len(ends) >= 2, f"every input ended at the same place: {ends}"


@pytest.mark.parametrize("target", DECODERS, ids=name_of)
def test_saved_inputs_break_nothing(target: Target) -> None:
    for path in saved_inputs(target, CORPUS):
        data = path.read_bytes()
        with measured(target, data):
            outcome(target, data)
