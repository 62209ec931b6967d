from __future__ import annotations

import pytest
from tiny_training import INNER

from distributed_training.manifest import InnerSection
from distributed_training.rules.schedules import inner_learning_rate

SECTION = InnerSection.model_validate(INNER | {"warmup_steps": 10, "decay_steps": 100, "nominal_steps": 5})


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [inner_learning_rate(SECTION, 0, t) for t in (0, 4, 9)] == pytest.approx([1e-4, 5e-4, 1e-3])


def test_cosine_goes_from_the_peak_to_the_floor_and_stays() -> None:
    assert inner_learning_rate(SECTION, 2, 0) == pytest.approx(1e-3)
    assert inner_learning_rate(SECTION, 12, 0) == pytest.approx(0.55e-3)
    assert inner_learning_rate(SECTION, 22, 0) == pytest.approx(1e-4)
    assert inner_learning_rate(SECTION, 5000, 3) == pytest.approx(1e-4)
    rates = [inner_learning_rate(SECTION, 2, t) for t in range(120)]
    assert rates == sorted(rates, reverse=True)


def test_the_clock_counts_nominal_steps_of_applied_rounds_not_work_done() -> None:
    assert inner_learning_rate(SECTION, 3, 0) == inner_learning_rate(SECTION, 0, 15)
    # Steps beyond the nominal number run ahead within the round; the next round starts at its own place.
    assert inner_learning_rate(SECTION, 3, 7) == inner_learning_rate(SECTION, 4, 2)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert inner_learning_rate(SECTION.model_copy(update={"warmup_steps": 0}), 0, 0) == pytest.approx(1e-3)


@pytest.mark.parametrize(("rounds", "step"), [(-1, 0), (0, -1)])
def test_negative_positions_are_refused(rounds: int, step: int) -> None:
    with pytest.raises(ValueError, match=">= 0"):
        inner_learning_rate(SECTION, rounds, step)
