"""A short seeded run of every fuzz target, and the replay of every input that once broke something."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_asked import ASKED
from fuzz_chunks import CHUNKS
from fuzz_decoders import DECODERS
from fuzz_engine import ACCEPTED, CORPUS, Finding, Run, Target, measured, outcome, random_inputs, saved_inputs, warm_up
from fuzz_files import FILES
from fuzz_pages import PAGES
from fuzz_rpc import RPCS
from fuzz_structures import STRUCTURES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEED = 1
RUNS = 1000
TARGETS = (*ASKED, *CHUNKS, *DECODERS, *FILES, *PAGES, *RPCS, *STRUCTURES)

# Structured inputs are large and slow to draw, and the fixture that silences logs may stay for all examples.
UNHEALTHY = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
)


def name_of(target: Target) -> str:
    return target.name


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_a_short_run_finds_nothing_and_reaches_deep(target: Target, tmp_path: Path) -> None:
    run = Run(target, corpus=tmp_path)
    random_inputs(target, RUNS, SEED, run, seconds=5)
    ends = run.result.ends
    assert ends[ACCEPTED] >= 1 and ends.total() == run.result.inputs > 100, ends
    assert len(ends) >= 2, f"every input ended at the same place: {ends}"


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=UNHEALTHY)
@given(st.data())
def test_hypothesis_finds_nothing_either(target: Target, data: st.DataObject) -> None:
    """Unlike the mutator it shrinks what it finds."""
    seed = data.draw(st.sampled_from(target.seeds) | st.binary(max_size=200))
    at, length = data.draw(st.integers(0, len(seed))), data.draw(st.integers(0, 40))
    outcome(target, seed[:at] + data.draw(st.binary(max_size=40)) + seed[at + length :])


@pytest.mark.parametrize("target", TARGETS, ids=name_of)
def test_saved_inputs_break_nothing(target: Target) -> None:
    warm_up(target)
    for path in saved_inputs(target, CORPUS):
        data = path.read_bytes()
        with measured(target, data):
            outcome(target, data)


def test_every_saved_input_belongs_to_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= {target.name for target in TARGETS}


def broken(data: bytes) -> str:
    if len(data) > 4:
        raise KeyError(len(data))
    return ACCEPTED if data == b"seed" else str(bytes(1 << 20)[0])


def test_a_crash_and_an_allocation_are_findings(tmp_path: Path) -> None:
    for check_input, problem in ((b"longer", "KeyError: 6"), (b"big", "are declared")):
        run = Run(Target("broken", (b"seed",), broken), corpus=tmp_path)
        with pytest.raises(Finding, match=problem):
            run.feed(check_input)
    assert {path.read_bytes() for path in (tmp_path / "broken").iterdir()} == {b"longer", b"big"}


def test_runs_are_repeatable_by_their_seed(tmp_path: Path) -> None:
    def ends(seed: int) -> dict[str, int]:
        run = Run(DECODERS[0], corpus=tmp_path)
        random_inputs(DECODERS[0], 300, seed, run)
        return dict(run.result.ends)

    assert ends(3) == ends(3) != ends(4)
