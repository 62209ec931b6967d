from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import AUDIT, GPT2, batches, loop, train

from distributed_training.manifest import AuditSection
from distributed_training.rules.fidelity import failing, gradient_error, judge, judge_vector
from distributed_training.training.model import build_model, to_flat
from distributed_training.types import StepRecord, Verdict

RULES = AuditSection.model_validate(AUDIT)
Log = tuple[StepRecord, ...]


def log(steps: int = 4, groups: int = 3, size: int = 32, sequences: int = 8) -> Log:
    rng = np.random.default_rng(3)
    return tuple(
        StepRecord(
            t,
            tuple((3.0 + rng.normal(0, 0.1, sequences)).tolist()),
            1.5,
            tuple(tuple(rng.normal(0, 1, size).tolist()) for _ in range(groups)),
        )
        for t in range(steps)
    )


def scaled(record: StepRecord, factor: float, group: int) -> StepRecord:
    """The record with one group's sketch multiplied: a gradient error of exactly factor - 1 there."""
    rows = tuple(tuple(factor * x for x in row) if i == group else row for i, row in enumerate(record.sketch))
    return dataclasses.replace(record, sketch=rows)


def at(records: Log, step: int, change: Callable[[StepRecord], StepRecord]) -> Log:
    return tuple(change(r) if r.step == step else r for r in records)


def test_an_equal_log_passes() -> None:
    result = judge(log(), log(), depth=4, audit=RULES)
    assert (result.verdict, result.quality, result.failed_step, result.reason) == (Verdict.PASS, 1.0, None, "ok")
    assert (result.depth, result.error) == (4, 0.0)


def test_only_the_asked_prefix_is_looked_at() -> None:
    broken = at(log(), 3, lambda r: scaled(r, 2.0, 0))
    assert judge(broken, log(), depth=3, audit=RULES).verdict is Verdict.PASS
    assert judge(broken, log(), depth=4, audit=RULES).failed_step == 3


@pytest.mark.parametrize("group", [0, 1, 2])
def test_the_worst_group_decides(group: int) -> None:
    result = judge(at(log(), 2, lambda r: scaled(r, 1.5, group)), log(), depth=4, audit=RULES)
    assert (result.verdict, result.quality, result.failed_step, result.reason) == (Verdict.FAIL, 0.0, 2, "gradient")
    assert result.error == pytest.approx(0.5)


def test_quality_falls_with_the_logarithm_between_the_bounds() -> None:
    def quality(error: float, step: int = 0) -> float:
        return judge(at(log(), step, lambda r: scaled(r, 1 + error, 1)), log(), depth=4, audit=RULES).quality

    assert quality(0.0199) == 1.0
    assert quality(math.sqrt(0.02 * 0.10)) == pytest.approx(0.5, abs=1e-6)
    assert quality(0.0999) == pytest.approx(0.0, abs=1e-2)
    assert quality(0.1001) == 0.0
    growth = 1 + 3 / 32
    assert quality(0.0199 * growth, step=3) == 1.0
    assert quality(math.sqrt(0.02 * 0.10) * growth, step=3) == pytest.approx(0.5, abs=1e-6)


def test_a_soft_result_names_the_worst_step() -> None:
    claimed = at(at(log(), 1, lambda r: scaled(r, 1.03, 0)), 2, lambda r: scaled(r, 1.06, 0))
    result = judge(claimed, log(), depth=4, audit=RULES)
    assert (result.verdict, result.failed_step, result.reason) == (Verdict.SOFT, 2, "gradient")
    assert result.error == pytest.approx(0.06)
    assert 0.0 < result.quality < 0.5


def test_the_first_failing_step_is_the_one_named() -> None:
    claimed = at(at(log(), 1, lambda r: scaled(r, 1.2, 0)), 2, lambda r: scaled(r, 9.0, 0))
    assert judge(claimed, log(), depth=4, audit=RULES).failed_step == 1


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.02, Verdict.PASS),
        (0.98, Verdict.PASS),
        (1.08, Verdict.SOFT),
        (0.92, Verdict.SOFT),
        (1.2, Verdict.FAIL),
        (0.8, Verdict.FAIL),
    ],
)
def test_the_norm_counts_in_both_directions(factor: float, verdict: Verdict) -> None:
    claimed = at(log(), 0, lambda r: dataclasses.replace(r, grad_norm=r.grad_norm * factor))
    result = judge(claimed, log(), depth=4, audit=RULES)
    assert result.verdict is verdict
    assert verdict is Verdict.PASS or result.reason == "norm"


def test_a_zero_norm_fails_without_an_infinite_error() -> None:
    claimed = at(log(), 0, lambda r: dataclasses.replace(r, grad_norm=0.0))
    result = judge(claimed, log(), depth=1, audit=RULES)
    assert (result.verdict, result.reason, result.error) == (Verdict.FAIL, "norm", None)


@pytest.mark.parametrize(
    ("changed", "by", "verdict"),
    [
        (8, 0.005, Verdict.PASS),
        (8, 0.02, Verdict.SOFT),
        (8, 0.06, Verdict.FAIL),
        (1, 0.5, Verdict.PASS),  # one sequence may spike
        (2, 0.5, Verdict.FAIL),  # two of eight may not
        (2, 0.04, Verdict.PASS),
    ],
)
def test_losses_are_judged_by_their_median_and_by_how_many_are_off(changed: int, by: float, verdict: Verdict) -> None:
    def change(record: StepRecord) -> StepRecord:
        losses = tuple(x + by if i < changed else x for i, x in enumerate(record.losses))
        return dataclasses.replace(record, losses=losses)

    result = judge(at(log(), 0, change), log(), depth=2, audit=RULES)
    assert result.verdict is verdict
    assert verdict is Verdict.PASS or result.reason == "loss"


def test_of_many_sequences_five_in_a_hundred_may_be_off() -> None:
    def claim(off: int) -> Verdict:
        records = log(steps=1, sequences=100)
        losses = tuple(x + (0.2 if i < off else 0.0) for i, x in enumerate(records[0].losses))
        return judge((dataclasses.replace(records[0], losses=losses),), records, depth=1, audit=RULES).verdict

    assert claim(5) is Verdict.PASS
    assert claim(6) is Verdict.FAIL


def test_missing_short_and_longer_than_the_data() -> None:
    missing = judge((), log(), depth=4, audit=RULES)
    assert (missing.verdict, missing.failed_step, missing.reason, missing.error) == (
        Verdict.FAIL,
        0,
        "log missing",
        None,
    )
    short = judge(log()[:2], log(), depth=4, audit=RULES)
    assert (short.verdict, short.failed_step, short.reason) == (Verdict.FAIL, 2, "log short")
    beyond = judge(log(), log()[:3], depth=4, audit=RULES)
    assert (beyond.verdict, beyond.failed_step, beyond.reason) == (Verdict.FAIL, 3, "no data")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["losses", "grad_norm", "sketch"])
def test_numbers_that_are_not_finite_fail(field: str, bad: float) -> None:
    def change(r: StepRecord) -> StepRecord:
        if field == "losses":
            return dataclasses.replace(r, losses=(bad, *r.losses[1:]))
        if field == "grad_norm":
            return dataclasses.replace(r, grad_norm=bad)
        return dataclasses.replace(r, sketch=((bad, *r.sketch[0][1:]), *r.sketch[1:]))

    result = judge(at(log(), 1, change), log(), depth=4, audit=RULES)
    assert (result.verdict, result.failed_step, result.reason) == (Verdict.FAIL, 1, "log not finite")
    assert failing(change(log()[1]), log()[1], RULES)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: dataclasses.replace(r, step=r.step + 1),
        lambda r: dataclasses.replace(r, losses=r.losses[:-1]),
        lambda r: dataclasses.replace(r, losses=()),
        lambda r: dataclasses.replace(r, sketch=r.sketch[:-1]),
        lambda r: dataclasses.replace(r, sketch=()),
        lambda r: dataclasses.replace(r, sketch=(r.sketch[0][:-1], *r.sketch[1:])),
    ],
)
def test_records_of_another_shape_fail(change: Callable[[StepRecord], StepRecord]) -> None:
    for step in (0, 2):
        result = judge(at(log(), step, change), log(), depth=4, audit=RULES)
        assert (result.verdict, result.failed_step, result.reason) == (Verdict.FAIL, step, "log malformed")


def test_a_tiny_group_is_measured_against_a_floor() -> None:
    tiny = tuple(scaled(r, 1e-5, 2) for r in log())
    rounded = at(tiny, 0, lambda r: scaled(r, 1.5, 2))
    assert judge(rounded, tiny, depth=4, audit=RULES).verdict is Verdict.PASS
    # The guard is no hole: a tiny group may not be claimed to be large.
    assert judge(at(tiny, 0, lambda r: scaled(r, 1e5, 2)), tiny, depth=4, audit=RULES).verdict is Verdict.FAIL


def test_a_gradient_of_zero_can_be_compared() -> None:
    nothing = tuple(dataclasses.replace(r, grad_norm=0.0, sketch=((0.0,) * 32,) * 3) for r in log())
    assert judge(nothing, nothing, depth=4, audit=RULES).verdict is Verdict.PASS
    assert judge(log(), nothing, depth=4, audit=RULES).verdict is Verdict.FAIL


@given(st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.integers(0, 2))
def test_more_error_never_earns_more(a: float, b: float, group: int) -> None:
    low, high = sorted((a, b))
    qualities = [
        judge(at(log(), 1, lambda r: scaled(r, 1 + error, group)), log(), depth=4, audit=RULES).quality  # noqa: B023
        for error in (low, high)
    ]
    assert 0.0 <= qualities[1] <= qualities[0] <= 1.0


@given(st.floats(0.0, 0.3))
def test_a_step_fails_alone_exactly_when_the_audit_fails(error: float) -> None:
    claimed = scaled(log()[0], 1 + error, 0)
    verdict = judge((claimed,), log(), depth=1, audit=RULES).verdict
    assert failing(claimed, log()[0], RULES) == (verdict is Verdict.FAIL)


def test_depth_zero_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="depth"):
        judge(log(), log(), depth=0, audit=RULES)


def test_full_replays_compare_the_vector() -> None:
    rng = np.random.default_rng(0)
    ours: Any = rng.normal(size=10_000).astype(np.float32)
    noise: Any = rng.normal(size=10_000).astype(np.float32)
    assert judge_vector(ours, ours + np.float32(0.01) * noise, RULES, depth=9) is None
    nothing = np.zeros_like(ours)
    assert judge_vector(nothing, nothing, RULES, depth=9) is None
    for bad in (ours + np.float32(0.5) * noise, noise, -ours, nothing, np.full_like(ours, np.nan), ours[:-1]):
        result = judge_vector(ours, bad, RULES, depth=9)
        assert result is not None
        assert (result.verdict, result.reason, result.depth) == (Verdict.FAIL, "vector", 9)
    for factor in (0.8, 1.3):
        result = judge_vector(ours, ours * np.float32(factor), RULES, depth=9)
        assert result is not None
        assert result.reason == "vector norm"


# From here on: real training, honest and not. Two states: random weights, where all gradients look alike, and later.


@pytest.fixture(scope="module", params=[0, 30], ids=["random weights", "after 30 steps"])
def state(request: pytest.FixtureRequest) -> tuple[np.ndarray, int]:
    start = to_flat(build_model(GPT2, 7))
    end = train(loop(GPT2), start, batches(50), request.param, sketch_seed=None).end
    return end, request.param // 5


def run(state: tuple[np.ndarray, int], data: object, *, micro_batch: int | None = None, **more: object) -> Log:
    start, applied = state
    return train(loop(GPT2, micro_batch=micro_batch), start, data, 6, applied_rounds=applied, **more).steps  # pyright: ignore[reportArgumentType]


def claim_whole_batch(records: Log) -> Log:
    """Fill the losses of sequences that were not run with the mean of those that were."""
    return tuple(
        dataclasses.replace(r, losses=(*r.losses, *[float(np.mean(r.losses))] * (8 - len(r.losses)))) for r in records
    )


def part(size: int) -> object:
    return (batch[:size] for batch in batches(1))


def test_honest_logs_pass_with_room(state: tuple[np.ndarray, int]) -> None:
    truth = run(state, batches(1))
    start, applied = state
    two_threads = loop(GPT2)
    torch.set_num_threads(2)
    others = train(two_threads, start, batches(1), 6, applied_rounds=applied).steps
    torch.set_num_threads(1)
    for honest in (run(state, batches(1), micro_batch=1), run(state, batches(1), micro_batch=3), others):
        result = judge(honest, truth, depth=6, audit=RULES)
        assert result.verdict is Verdict.PASS
        assert result.error is not None
        assert result.error < RULES.error_ok / 20


CHEATS: dict[str, Callable[[tuple[np.ndarray, int], Log], Log]] = {
    "other data": lambda state, truth: run(state, batches(2)),
    "half batch": lambda state, truth: claim_whole_batch(run(state, part(4))),
    "7/8 batch": lambda state, truth: claim_whole_batch(run(state, part(7))),
    "half sequences": lambda state, truth: run(state, (b[:, list(range(16)) * 2] for b in batches(1))),
    "older state": lambda state, truth: run((state[0] + np.float32(0.05), state[1]), batches(1)),
    "another round's log": lambda state, truth: run(state, batches(1), sketch_seed=b"former round"),
    "noise": lambda state, truth: tuple(
        dataclasses.replace(
            r,
            sketch=tuple(tuple(np.random.default_rng(i).permuted(row).tolist()) for i, row in enumerate(r.sketch)),
        )
        for r in truth
    ),
    "invented losses": lambda state, truth: tuple(
        dataclasses.replace(r, losses=(float(np.mean(r.losses)),) * 8) for r in truth
    ),
    "frozen block": lambda state, truth: tuple(
        dataclasses.replace(r, sketch=(r.sketch[0], (0.0,) * 32, *r.sketch[2:])) for r in truth
    ),
    "steps in another order": lambda state, truth: run(state, itertools.islice(batches(1), 1, None)),
}


# Nearly all the work is done here; with random weights, where all sequences look alike, these may end soft.
SMALL_GAIN = {"7/8 batch", "invented losses"}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(state: tuple[np.ndarray, int], name: str) -> None:
    truth = run(state, batches(1))
    result = judge(CHEATS[name](state, truth), truth, depth=6, audit=RULES)
    assert result.verdict is not Verdict.PASS
    if name not in SMALL_GAIN:
        assert result.verdict is Verdict.FAIL


def test_coasting_fails_at_the_first_invented_step(state: tuple[np.ndarray, int]) -> None:
    truth = run(state, batches(1))
    coast = truth[:3] + tuple(dataclasses.replace(truth[2], step=t) for t in (3, 4, 5))
    assert judge(coast, truth, depth=3, audit=RULES).verdict is Verdict.PASS
    result = judge(coast, truth, depth=6, audit=RULES)
    assert (result.verdict, result.failed_step) == (Verdict.FAIL, 3)


def test_the_gradient_error_of_half_a_batch_is_far_above_an_honest_one(state: tuple[np.ndarray, int]) -> None:
    truth, other, half = run(state, batches(1)), run(state, batches(1), micro_batch=2), run(state, part(4))
    assert gradient_error(half[0], truth[0]) > 100 * gradient_error(other[0], truth[0])
