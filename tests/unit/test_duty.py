from __future__ import annotations

import numpy as np
import pytest
from test_scoring import CAP, SCORING, after, seen

from distributed_training.protocol.rules.duty import (
    NO_REDUCER_DUTY,
    SLOPE,
    Bits,
    can_reduce,
    credited_tokens,
    credits,
    duty,
    expected_senders,
    reduced_share,
    tolerant,
)
from distributed_training.protocol.rules.scoring import fold, integrity
from distributed_training.protocol.types import Candidate, Carry

N = 12


def everybody() -> Bits:
    """One chunk for each of twelve reducers; each includes all twelve."""
    return np.ones((N, N), bool)


def everyone() -> Bits:
    return np.ones(N, bool)


def none(rows: int = N) -> Bits:
    return np.zeros(rows, bool)


def test_the_worst_third_is_forgiven_but_for_the_slope() -> None:
    assert (tolerant(0.0), tolerant(1.0)) == (0.0, 1.0)
    assert tolerant(2 / 3) == pytest.approx(1 - SLOPE / 3) and tolerant(0.5) == pytest.approx(0.95 * 0.75 + 0.025)
    shares = [tolerant(i / 100) for i in range(101)]
    assert shares == sorted(set(shares)), "leaving out one chunk more always costs something"
    assert (1 - tolerant(2 / 3)) * 2 < 0.05, "of both, S and I, together: what a third can take from somebody"


def test_one_victim_left_out_by_less_than_a_third_of_the_reducers_keeps_its_pay() -> None:
    """Before, 1, 2, 3 or 4 of 12 took 12, 24, 34 or 44 % of its pay."""
    for liars, least in ((1, 0.99), (2, 0.98), (3, 0.974), (4, 0.966)):
        bits = everybody()
        bits[:liars, N - 1] = False
        credit = credits(bits, none())
        assert credit[: N - 1] == [1.0] * (N - 1)
        paid = credit[-1] * duty(credit[-1], reduced_share(bits[-1:], everyone(), none(1)), can_reduce=True)
        assert least < paid < 1.0


def test_a_reducer_pays_for_whom_it_leaves_out() -> None:
    bits, full = everybody(), everyone()
    assert reduced_share(bits[:1], full, none(1)) == 1.0
    bits[0, 3:] = False  # it includes its two friends and itself
    assert reduced_share(bits[:1], full, none(1)) == pytest.approx(tolerant(0.25)) and tolerant(0.25) < 0.375
    bits[0] = False
    assert reduced_share(bits[:1], full, none(1)) == 0.0
    assert reduced_share(everybody()[:2], full, np.array([True, False])) == pytest.approx(tolerant(0.5)), "a norm lied"
    assert reduced_share(bits[:1], none(), none(1)) == 1.0, "nobody is expected"


def test_leaving_somebody_out_costs_a_group_below_a_third_more_than_it_gains() -> None:
    def share(k: int, bits: Bits) -> float:
        credit, full = credits(bits, none()), everyone()
        pay = [c * duty(c, reduced_share(bits[i : i + 1], full, none(1)), True) for i, c in enumerate(credit)]
        return sum(pay[:k]) / sum(pay)

    for k in (1, 2, 3):
        for victims in (1, 2, 3):
            bits = everybody()
            bits[:k, N - victims :] = False
            assert share(k, bits) < k / N


def test_a_chunk_that_lacks_too_many_takes_next_to_nothing_from_those_whom_it_lacks() -> None:
    bits = everybody()
    bits[:4, 4:] = False  # four reducers include only each other
    lacking = np.arange(N) < 4
    assert credits(bits, lacking) == [1.0] * 4 + [tolerant(1.0, 8 / 12)] * 8 and tolerant(1.0, 8 / 12) > 0.98
    assert min(credits(bits, none())) == pytest.approx(tolerant(8 / 12))
    assert credits(np.zeros((1, 2), bool), np.ones(1, bool)) == [0.0, 0.0], "included nowhere"


def test_withholding_from_one_reducer_costs_who_does_it_more_than_the_victim() -> None:
    """Three of twelve send nothing to the last one: no gate, its part falls by the slope, theirs too."""
    bits = everybody()
    bits[N - 1, :3] = False
    expected = expected_senders(bits)
    victim = duty(1.0, reduced_share(bits[-1:], expected, none(1)), can_reduce=True)
    credit = credits(bits, none())[0]
    doer = credit * duty(credit, 1.0, can_reduce=True)
    assert 0.99 < victim < 1.0 and 3 * (1 - doer) > 1 - victim


def test_half_of_the_chunks_make_a_sender_expected_whatever_the_slices() -> None:
    bits = np.ones((8, 2), bool)
    bits[:4, 0] = False
    assert expected_senders(bits).tolist() == [True, True]
    bits[4, 0] = False
    assert expected_senders(bits).tolist() == [False, True]


def test_duty_is_half_sender_half_reducer() -> None:
    assert duty(0.9, None, can_reduce=True) == 0.9
    assert duty(0.8, 1.0, can_reduce=True) == pytest.approx(0.9)
    assert duty(0.8, 0.0, can_reduce=True) == pytest.approx(0.4)


def test_who_cannot_be_given_a_slice_has_at_most_four_fifths() -> None:
    assert duty(1.0, None, can_reduce=False) == NO_REDUCER_DUTY == 0.8
    assert duty(0.7, None, can_reduce=False) == 0.7
    willing, unwilling = (
        Candidate(1, "a", bytes(32), 1, bytes(32), None, bytes(32), reduces) for reduces in (True, False)
    )
    failed, others = Carry(1.0, ((bytes(32),), ())), Carry(1.0, ((bytes([1]) * 32,),))
    assert can_reduce(willing, others) and not can_reduce(willing, failed) and not can_reduce(unwilling, others)


def test_saying_that_one_does_not_reduce_pays_better_than_failing_slices() -> None:
    """A slice that failed keeps its reducer from the next for 8 rounds: a shut port shows in one round out of nine."""
    honest, card = after(90, duty=duty(1.0, None, False)), None
    best = 0.0
    for r in range(90):
        failing = r % 9 == 0
        card = fold(card, seen(r, duty=duty(1.0, 0.0 if failing else None, failing)), SCORING, CAP)
        best = max(best, integrity(card, SCORING))
    assert best < integrity(honest, SCORING) == pytest.approx(0.8)


def test_the_cap_comes_before_the_share() -> None:
    assert credited_tokens(2 * CAP, 0.5, CAP) == CAP / 2
    assert credited_tokens(1000, 0.25, CAP) == 250.0
