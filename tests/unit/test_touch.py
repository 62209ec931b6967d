from __future__ import annotations

from typing import Any

from samples import group

from distributed_training.averaging.touch import Touch


def touch(count: int) -> tuple[Touch, list[bytes]]:
    """Of the reducer of slice 0; and the other reducers."""
    plan = group(count).plan
    nobody: Any = None
    assert len(plan.slices) == count
    return Touch(plan, plan.slices[0], 0, nobody, nobody, nobody), [s.reducer for s in plan.slices[1:]]


def test_who_is_in_touch_with_half_of_the_others_misses_nobody() -> None:
    ours, (one, two, three) = touch(4)
    assert ours.missed([]) == {one, two, three}
    ours.took(one)
    assert ours.missed([]) == {two, three}
    ours.took(two)
    assert ours.missed([]) == frozenset()
    ours.lost(one)
    ours.lost(two)
    assert ours.missed([]) == {one, two, three}, "they have fallen silent"


def test_who_delivered_to_us_is_near_unless_it_took_ours_and_fell_silent() -> None:
    ours, (one, two, three) = touch(4)
    assert ours.missed([one, two]) == frozenset(), "only our uplink is slow"
    ours.took(two)
    ours.lost(two)
    assert ours.missed([one, two]) == {two, three}


def test_two() -> None:
    ours, (other,) = touch(2)
    assert ours.missed([]) == {other}
    assert ours.missed([other]) == frozenset()
