from __future__ import annotations

import pytest
from tiny_training import INNER

from distributed_training.protocol.rules.schedules import inner_learning_rate
from distributed_training.protocol.sections import InnerSection

SECTION = InnerSection.model_validate(INNER | {"warmup_steps": 10, "decay_steps": 100, "nominal_steps": 5})


def rate(rounds: int, step: int) -> float:
    """The schedule alone, as a run that keeps its moments sees it."""
    return inner_learning_rate(SECTION, rounds, step, fresh_moments=False)


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [rate(0, t) for t in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])


def test_cosine_goes_from_the_peak_to_the_floor_and_stays() -> None:
    assert [rate(2, 0), rate(12, 0), rate(22, 0), rate(5000, 3)] == pytest.approx([1e-3, 0.55e-3, 1e-4, 1e-4])
    rates = [rate(2, t) for t in range(120)]
    assert rates == sorted(rates, reverse=True)


def test_the_clock_counts_nominal_steps_of_applied_rounds_not_work_done() -> None:
    assert rate(3, 0) == rate(0, 15)
    # Steps beyond the nominal number run ahead within the round; the next round starts at its own place.
    assert rate(3, 7) == rate(4, 2)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    section = SECTION.model_copy(update={"warmup_steps": 0})
    assert inner_learning_rate(section, 0, 0, fresh_moments=False) == pytest.approx(1e-3)


def test_fresh_moments_ramp_up_at_the_start_of_every_round() -> None:
    for rounds in (0, 3, 50):
        ramp = [inner_learning_rate(SECTION, rounds, t) / rate(rounds, t) for t in range(SECTION.ramp_steps + 3)]
        assert ramp == pytest.approx(
            [*((t + 1) / SECTION.ramp_steps for t in range(SECTION.ramp_steps)), 1.0, 1.0, 1.0]
        )


@pytest.mark.parametrize(("rounds", "step"), [(-1, 0), (0, -1)])
def test_negative_positions_are_refused(rounds: int, step: int) -> None:
    with pytest.raises(ValueError, match=">= 0"):
        inner_learning_rate(SECTION, rounds, step)
