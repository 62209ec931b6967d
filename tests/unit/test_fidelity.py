from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import AUDIT

from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.fidelity import (
    NUMERIC,
    failing,
    growth,
    judge,
    judge_direction,
    judge_vector,
    scored,
)
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord

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
    assert (result.good, result.bad) == (RULES.error_ok, RULES.error_bad), "of the step with the largest error"


def test_a_batch_of_one_sequence_is_judged_by_it_alone() -> None:
    one = log(sequences=1)
    assert judge(one, one, depth=4, audit=RULES).verdict is Verdict.PASS
    off = at(one, 1, lambda r: dataclasses.replace(r, losses=(r.losses[0] + 1.0,)))
    assert (judge(off, one, depth=4, audit=RULES).reason, judge(off, one, depth=4, audit=RULES).failed_step) == (
        "loss",
        1,
    )


def test_only_the_asked_prefix_is_looked_at() -> None:
    broken = at(log(), 3, lambda r: scaled(r, 2.0, 0))
    assert judge(broken, log(), depth=3, audit=RULES).verdict is Verdict.PASS
    assert judge(broken, log(), depth=4, audit=RULES).failed_step == 3


@pytest.mark.parametrize("group", [0, 1, 2])
def test_the_worst_group_decides(group: int) -> None:
    result = judge(at(log(), 2, lambda r: scaled(r, 1.5, group)), log(), depth=4, audit=RULES)
    assert (result.verdict, result.quality, result.failed_step, result.reason) == (Verdict.FAIL, 0.0, 2, "gradient")
    assert result.error == pytest.approx(0.5)
    growth = 1 + 2 / RULES.error_growth_steps
    assert (result.good, result.bad) == (RULES.error_ok * growth, RULES.error_bad * growth)


def test_the_bounds_stop_growing() -> None:
    steps = (0, 16, 32, 96, 200)
    assert [growth(RULES, step) for step in steps] == [1.0, 1.5, 2.0, 4.0, 4.0]


def test_what_ones_own_two_replays_differ_by_is_held_against_nobody() -> None:
    off = at(log(), 2, lambda r: scaled(r, 1.3, 1))
    near, far = (at(log(), 2, lambda r, by=by: scaled(r, by, 1)) for by in (1.02, 1.06))
    assert judge(off, log(), depth=4, audit=RULES).verdict is Verdict.FAIL
    assert judge(off, log(), depth=4, audit=RULES, again=near).verdict is Verdict.FAIL  # six times 0.02 is not 0.3
    assert judge(off, log(), depth=4, audit=RULES, again=far).verdict is Verdict.SOFT
    lost = at(log(), 2, lambda r: scaled(r, 1.1, 1))  # from here on other data would pass: judged no further
    assert judge(off, log(), depth=4, audit=RULES, again=lost).verdict is Verdict.PASS
    earlier = at(off, 1, lambda r: scaled(r, 1.3, 1))
    assert judge(earlier, log(), depth=4, audit=RULES, again=lost).failed_step == 1


def test_a_vector_may_be_twice_as_far_as_ones_own_two() -> None:
    ours = np.asarray([1.0, 0.0, 0.0], np.float32)
    own, theirs = (np.asarray([1.0, x, 0.0], np.float32) for x in (0.2, 0.25))
    assert judge_vector([(ours, theirs, ours)], RULES, depth=4) is not None
    assert judge_vector([(ours, theirs, own)], RULES, depth=4) is None
    other = np.asarray([1.0, 1.0, 0.0], np.float32)
    assert judge_vector([(ours, other, own)], RULES, depth=4) is not None


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
    assert result.good is not None and result.bad is not None and result.good < 0.06 < result.bad
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


def judged(ours: Any, theirs: Any) -> AuditResult | None:
    """In parts, the last of them short."""
    parts = (np.split(vector, [4096, 8192]) for vector in (ours, theirs, ours))
    return judge_vector(zip(*parts, strict=True), RULES, depth=9)


def test_full_replays_compare_the_vector() -> None:
    rng = np.random.default_rng(0)
    ours: Any = rng.normal(size=10_000).astype(np.float32)
    noise: Any = rng.normal(size=10_000).astype(np.float32)
    assert judged(ours, ours + np.float32(0.01) * noise) is None
    nothing = np.zeros_like(ours)
    assert judged(nothing, nothing) is None
    for bad in (ours + np.float32(0.5) * noise, noise, -ours, nothing, np.full_like(ours, np.nan)):
        result = judged(ours, bad)
        assert result is not None
        assert (result.verdict, result.reason, result.depth) == (Verdict.FAIL, "vector", 9)
    for factor in (0.8, 1.3):
        result = judged(ours, ours * np.float32(factor))
        assert result is not None
        assert result.reason == "vector norm"


@pytest.mark.parametrize(
    ("noise", "ok", "bad"),
    [(0.0, 0.02, 0.10), (0.005, 0.02, 0.10), (0.01, 0.04, 0.12), (0.04, 0.16, 0.48), (1.0, 0.25, 0.495)],
)
def test_the_noise_floor_widens_the_bounds_of_gradients_and_never_to_other_data(
    noise: float, ok: float, bad: float
) -> None:
    result = judge(log(1), log(1), depth=1, audit=RULES, noise=noise)
    assert (result.good, result.bad) == (pytest.approx(ok), pytest.approx(bad))
    assert judge(log(1), log(1), depth=1, audit=RULES).good == RULES.error_ok
    off = at(log(1), 0, lambda r: scaled(r, 1.3, 0))
    assert failing(off[0], log(1)[0], RULES, noise) is (bad < 0.3)
    deep = judge(log(), log(), depth=4, audit=RULES, noise=0.04)
    assert deep.bad is not None and deep.bad < 0.5


def test_the_log_mode_counts_what_thresholds_alone_say_as_a_pass() -> None:
    found = AuditResult(Verdict.FAIL, 0.0, 3, 2, 0.7, "gradient", 0.02, 0.1)
    logs = RULES.model_copy(update={"mode": "log"})
    for reason in (*NUMERIC, "log malformed", "no data", "pages are not the assigned ones"):
        one = dataclasses.replace(found, reason=reason)
        assert scored(one, RULES) is one
        counts = scored(one, logs)
        passed = dataclasses.replace(one, verdict=Verdict.PASS, quality=1.0)
        assert counts == (passed if reason in NUMERIC else one), reason
    soft = dataclasses.replace(found, verdict=Verdict.SOFT, quality=0.4)
    assert (scored(soft, logs).verdict, scored(soft, logs).quality) == (Verdict.PASS, 1.0)


@pytest.mark.parametrize(("cosine", "passes"), [(1.0, True), (0.06, True), (0.04, False), (0.0, False), (-0.5, False)])
def test_a_vector_must_go_where_the_first_steps_go(cosine: float, passes: bool) -> None:
    """25 steps of 100: at least 0.05."""
    mine = np.zeros(8, np.float32)
    theirs = mine.copy()
    mine[0], theirs[0], theirs[1] = 2.0, 3.0 * cosine, 3.0 * math.sqrt(1.0 - cosine * cosine)
    halves = [(mine[:4], theirs[:4]), (mine[4:], theirs[4:])]
    result = judge_direction(halves, depth=25, steps=100)
    assert (result is None) is passes
    if result is not None:
        assert (result.verdict, result.reason, result.depth) == (Verdict.FAIL, "direction", 25)
        assert (result.error, result.bad) == (pytest.approx(cosine, abs=1e-6), pytest.approx(0.05))


def test_parts_that_the_first_steps_do_not_move_say_nothing_of_the_direction() -> None:
    """An expert that no token has come to yet: the miner's later steps moved it."""
    still, moved = np.zeros(8, np.float32), np.ones(8, np.float32)
    assert judge_direction([(still, moved)], depth=1, steps=500) is None
    turned = judge_direction([(still, moved), (moved, -moved)], depth=1, steps=500)
    nothing = judge_direction([(moved, still)], depth=1, steps=500)
    assert turned is not None and nothing is not None and turned.verdict is nothing.verdict is Verdict.FAIL
