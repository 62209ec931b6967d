"""A small seed of the search over patterns of leaving out and withholding: `scripts/bench.py collusion`."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.collusion import CHUNKS, MINERS, Pattern, collusion_rows, failures_of, seen, settled, weights
from benchmarks.collusion import section_of as section


def test_honest_miners_are_paid_alike() -> None:
    pattern = Pattern(np.ones((1, MINERS * CHUNKS, MINERS), bool), np.zeros((1, MINERS), bool))
    assert weights(pattern, section(), 60) == pytest.approx([1 / MINERS] * MINERS)


def test_a_group_below_a_third_finds_nothing_worth_its_while() -> None:
    rows = list(collusion_rows(5, (1, 3), steps=40, starts=7))
    assert [failures_of(row) for row in rows] == [[]] * 4
    by = {(row["group"], row["by"]): row for row in rows}
    assert by[3, "share"]["share_of_fair"] <= 1.0001 and 0.015 < by[3, "harm"]["harm_to_honest"] < 0.03


def test_what_is_climbed_is_what_is_paid() -> None:
    draw = np.random.default_rng(3)
    bits = draw.random((3, MINERS * CHUNKS, MINERS)) < 0.9
    pattern = Pattern(bits, np.zeros((3, MINERS), bool))
    assert weights(pattern, section(), 120) == pytest.approx(settled(pattern, section()), rel=0.02)


def test_failures_are_of_groups_below_a_third() -> None:
    row = {"group": 3, "by": "share", "share_of_fair": 1.06, "harm_to_honest": 0.06}
    assert len(failures_of(row)) == 2 and failures_of(row | {"group": 4}) == []
    assert seen(np.ones((MINERS * CHUNKS, MINERS), bool), np.ones(MINERS, bool)) == ([0.0] * MINERS, [0.0] * MINERS)
