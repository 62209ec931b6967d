from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, Verdict
from distributed_training.protocol.rules.scoring import (
    NO_REDUCER_DUTY,
    bandwidth,
    can_reduce,
    credited_tokens,
    duty,
    fidelity,
    fold,
    fold_absent,
    integrity,
    reasons,
    terms,
)
from distributed_training.protocol.sections import ScoringSection
from distributed_training.protocol.types import Candidate, Carry, CarryRound

SCORING = ScoringSection(
    steps_half_life=36.0,
    audit_half_life=50.0,
    integrity_half_life=6.0,
    integrity_floor=0.5,
    soft_fail_weight=10.0,
    penalty_rounds=50,
    goodput_required=1000.0,
    goodput_probes=8,
    bandwidth_share=0.25,
    cutoff=0.01,
    burn_share=0.0,
)
CAP = 100_000
PASS = AuditResult(Verdict.PASS, 1.0, 9, None, 0.004, "ok")
SOFT = AuditResult(Verdict.SOFT, 0.3, 9, 2, 0.06, "gradient")
FAIL = AuditResult(Verdict.FAIL, 0.0, 9, 0, 1.37, "gradient")


def seen(
    round: int = 0,
    *,
    tokens: float = CAP,
    audit: AuditResult | None = PASS,
    goodput: float | None = 4000.0,
    duty: float | None = 1.0,
    hotkey: str = "a",
    uid: int = 1,
    registered: int = 5,
) -> Observation:
    return Observation(uid, hotkey, registered, round, tokens, audit, goodput, duty)


def after(count: int, **values: object) -> ScoreCard:
    card = None
    for r in range(count):
        card = fold(card, seen(r, **values), SCORING, CAP)  # pyright: ignore[reportArgumentType]
    assert card is not None
    return card


def weights_of(cards: dict[str, ScoreCard], round_index: int = 0) -> dict[str, float]:
    return {key: t.weight for key, t in terms(cards, round_index, SCORING).items()}


# one card, term by term


def test_golden_first_round_of_an_honest_miner() -> None:
    card = fold(None, seen(), SCORING, CAP)
    (t,) = terms({"a": card}, 0, SCORING).values()
    assert card.steps == pytest.approx(1 - 0.5 ** (1 / 36), rel=1e-12)
    assert (t.G, t.I, t.B, t.weight) == (2 / 3, 1.0, 1.0, 1.0)
    assert (card.passed_audit, card.reason, card.note) == (True, "", "round 0: pass, 9 steps")


def test_golden_fourth_round_with_a_soft_failure_and_a_slow_link() -> None:
    card = after(3, goodput=1000.0)
    card = fold(card, seen(3, audit=SOFT, goodput=1000.0, duty=0.5), SCORING, CAP)
    (t,) = terms({"a": card}, 3, SCORING).values()
    keep = 0.5 ** (1 / 50)
    p, f = keep + keep**2 + keep**3 + 0.3, 0.7
    expected_i = 0.5 ** (1 / 6) + (1 - 0.5 ** (1 / 6)) * 0.5
    expected = (1 - 0.5 ** (4 / 36), (1 + p) / (2 + p + 10 * f), log(5) / log(17), expected_i, 1.0)
    assert (t.S, t.G, t.B, t.I, t.weight) == pytest.approx(expected, rel=1e-12)
    assert card.note == "round 3: soft, gradient at step 2 (error 0.06)"


@pytest.mark.parametrize(("passes", "expected"), [(0, 0.5), (1, 2 / 3), (3, 0.8), (8, 0.9)])
def test_fidelity_is_a_pessimistic_mean(passes: int, expected: float) -> None:
    card = replace(after(1), passes=float(passes))
    assert fidelity(card, 0, SCORING) == pytest.approx(expected)


def test_steps_reach_one_half_after_one_half_life_and_fall_back_by_absence() -> None:
    card = after(36)
    assert card.steps == pytest.approx(0.5)
    for r in range(36, 72):
        card = fold_absent(card, r, SCORING)
    assert card.steps == pytest.approx(0.25)


def test_absence_costs_steps_and_evidence_but_not_integrity_or_probes() -> None:
    before = after(10, duty=0.9)
    card = fold_absent(before, 10, SCORING)
    assert card.steps < before.steps
    assert card.passes == pytest.approx(before.passes * 0.5 ** (1 / 50))
    assert (card.integrity, card.goodput, card.reason) == (before.integrity, before.goodput, "")
    assert card.note == before.note


def test_absence_is_the_reason_only_where_nothing_was_earned() -> None:
    unproven = fold(None, seen(audit=None), SCORING, CAP)
    assert (unproven.reason, fold_absent(unproven, 1, SCORING).reason) == ("no passed audit yet", "absent")
    lazy = after(9, duty=0.1)
    assert fold_absent(lazy, 9, SCORING).reason == "integrity below floor"


def test_integrity_starts_at_the_first_duty_and_snaps_to_zero_below_the_floor() -> None:
    card = fold(None, seen(duty=0.7), SCORING, CAP)
    assert (card.integrity, integrity(card, SCORING)) == (0.7, 0.7)
    card = fold(None, seen(duty=0.49), SCORING, CAP)
    assert (integrity(card, SCORING), card.reason) == (0.0, "integrity below floor")
    assert weights_of({"a": card}) == {"a": 0.0}
    unknown = fold(None, seen(duty=None), SCORING, CAP)
    assert (unknown.integrity, integrity(unknown, SCORING), unknown.reason) == (None, 0.0, "no duty seen yet")


@pytest.mark.parametrize(
    ("goodput", "expected"),
    [(0.0, 0.0), (250.0, log(2) / log(17)), (1000.0, log(5) / log(17)), (4000.0, 1.0), (1e12, 1.0)],
)
def test_bandwidth_is_absolute_and_saturates(goodput: float, expected: float) -> None:
    assert bandwidth(after(1, goodput=goodput), SCORING) == pytest.approx(expected)


def test_bandwidth_takes_the_60th_percentile_of_the_kept_probes() -> None:
    card = None
    for r, goodput in enumerate([9e9, 8.0, 3.0, 5.0, 1.0, 7.0, 2.0, 4.0, 6.0]):
        card = fold(card, seen(r, goodput=goodput), SCORING, CAP)
    assert card is not None
    assert card.goodput == (8.0, 3.0, 5.0, 1.0, 7.0, 2.0, 4.0, 6.0)  # eight kept, oldest first
    assert bandwidth(card, SCORING) == pytest.approx(log(1 + 5 / 250) / log(17))  # fifth of eight


def test_never_probed_is_not_a_penalty_but_an_unanswered_probe_is() -> None:
    assert bandwidth(after(1, goodput=None), SCORING) == 1.0
    free = SCORING.model_copy(update={"goodput_required": 0.0})
    assert bandwidth(after(1, goodput=3.0), free) == 1.0
    cards = {"a": after(5, goodput=None), "b": after(5, goodput=0.0)}
    w = weights_of(cards, 4)
    assert w["b"] / w["a"] == pytest.approx(0.75)


def test_duty_is_half_sender_half_reducer() -> None:
    assert duty(0.9, was_reducer=False, slice_counted=False, can_reduce=True) == 0.9
    assert duty(0.8, was_reducer=True, slice_counted=True, can_reduce=True) == pytest.approx(0.9)
    assert duty(0.8, was_reducer=True, slice_counted=False, can_reduce=True) == pytest.approx(0.4)


def test_who_cannot_be_given_a_slice_has_at_most_four_fifths() -> None:
    assert duty(1.0, was_reducer=False, slice_counted=False, can_reduce=False) == NO_REDUCER_DUTY == 0.8
    assert duty(0.7, was_reducer=False, slice_counted=False, can_reduce=False) == 0.7
    assert integrity(after(50, duty=0.8), SCORING) == pytest.approx(0.8)
    willing, unwilling = (
        Candidate(1, "a", bytes(32), 1, bytes(32), None, bytes(32), reduces) for reduces in (True, False)
    )
    failed = Carry(1.0, (CarryRound((bytes(32),), (bytes(32),)), CarryRound((bytes(32),), ())))
    others = Carry(1.0, (CarryRound((bytes(32),), (bytes([1]) * 32,)),))
    assert can_reduce(willing, others) and not can_reduce(willing, failed) and not can_reduce(unwilling, others)


def test_saying_that_one_does_not_reduce_pays_better_than_failing_slices() -> None:
    """A slice that failed keeps its reducer from the next for 8 rounds: a shut port shows in one round out of nine."""
    honest, card = after(90, duty=duty(1.0, False, False, False)), None
    best = 0.0
    for r in range(90):
        failing = r % 9 == 0
        card = fold(card, seen(r, duty=duty(1.0, failing, False, failing)), SCORING, CAP)
        best = max(best, integrity(card, SCORING))
    assert best < integrity(honest, SCORING) == pytest.approx(0.8)


def test_the_cap_comes_before_the_share() -> None:
    assert credited_tokens(2 * CAP, 0.5, CAP) == CAP / 2
    assert credited_tokens(1000, 0.25, CAP) == 250.0
    assert fold(None, seen(tokens=9e9), SCORING, CAP).steps == fold(None, seen(), SCORING, CAP).steps


# hard failures


def test_a_hard_failure_zeroes_at_once_names_step_and_error_and_ends_as_a_newcomer() -> None:
    card = fold(after(20), seen(20, audit=FAIL), SCORING, CAP)
    assert (card.zero_until_round, card.steps, card.passed_audit) == (70, 0.0, False)
    assert card.reason == "audit failed: gradient at step 0 (error 1.37)"
    assert card.note == "round 20: fail, gradient at step 0 (error 1.37)"
    for r in range(21, 70):
        card = fold(card, seen(r), SCORING, CAP)
        assert (fidelity(card, r, SCORING), weights_of({"a": card}, r)) == (0.0, {"a": 0.0})
        assert card.reason.startswith("audit failed")
    card = fold(card, seen(70, audit=None), SCORING, CAP)
    assert (fidelity(card, 70, SCORING), card.reason) == (0.5, "no passed audit yet")
    card = fold(card, seen(71), SCORING, CAP)
    newcomer = fold(fold(None, seen(70, audit=None), SCORING, CAP), seen(71), SCORING, CAP)
    assert (card.steps, card.passes, card.fails) == (newcomer.steps, newcomer.passes, newcomer.fails)
    assert weights_of({"a": card}, 71) == {"a": 1.0}


def test_a_second_failure_starts_the_penalty_again_and_absence_does_not_shorten_it() -> None:
    card = fold(fold(None, seen(0, audit=FAIL), SCORING, CAP), seen(30, audit=FAIL), SCORING, CAP)
    assert card.zero_until_round == 80
    assert fold_absent(card, 31, SCORING) == card


def test_a_failure_without_step_or_error_is_still_named() -> None:
    audit = AuditResult(Verdict.FAIL, 0.0, 9, None, None, "vector")
    assert fold(None, seen(audit=audit), SCORING, CAP).reason == "audit failed: vector"


@pytest.mark.parametrize("error", [nan, inf])
def test_numbers_that_are_not_finite_do_not_save_a_failed_audit(error: float) -> None:
    audit = replace(FAIL, error=error, quality=nan)
    card = fold(after(3), seen(3, tokens=nan, audit=audit, duty=nan), SCORING, CAP)
    assert (card.zero_until_round, card.integrity) == (53, 1.0)
    assert weights_of({"a": card}, 3) == {"a": 0.0}


# invalid observations, identity


@pytest.mark.parametrize(
    "bad",
    [
        seen(4, tokens=nan),
        seen(4, tokens=inf),
        seen(4, tokens=-1.0),
        seen(4, goodput=nan),
        seen(4, goodput=-inf),
        seen(4, duty=nan),
        seen(4, duty=1.5),
        seen(4, audit=replace(PASS, quality=nan)),
        seen(4, audit=replace(PASS, quality=-0.1)),
    ],
)
def test_an_invalid_observation_counts_as_absence(bad: Observation) -> None:
    before = after(4)
    card = fold(before, bad, SCORING, CAP)
    assert card == replace(fold_absent(before, 4, SCORING), note="round 4: invalid observation")


def test_a_recycled_uid_starts_anew_and_the_same_registration_follows_its_uid() -> None:
    card = after(20)
    assert fold(card, seen(20, hotkey="b"), SCORING, CAP) == fold(None, seen(20, hotkey="b"), SCORING, CAP)
    assert fold(card, seen(20, registered=90), SCORING, CAP) == fold(None, seen(20, registered=90), SCORING, CAP)
    moved = fold(card, seen(20, uid=9), SCORING, CAP)
    assert (moved.uid, moved.steps) == (9, fold(card, seen(20), SCORING, CAP).steps)


def test_registering_again_does_not_shed_a_penalty_but_another_hotkey_does_not_inherit_it() -> None:
    card = fold(after(3), seen(3, audit=FAIL), SCORING, CAP)
    again = fold(card, seen(10, registered=99), SCORING, CAP)
    assert (again.zero_until_round, again.reason, again.registered_block) == (53, card.reason, 99)
    assert weights_of({"a": again}, 10) == {"a": 0.0}
    assert fold(card, seen(10, hotkey="b"), SCORING, CAP).zero_until_round == 0
    assert fold(card, seen(60, registered=99), SCORING, CAP).zero_until_round == 0


# all cards together


def test_weights_need_a_passed_audit() -> None:
    cards = {"a": after(4), "b": after(4, audit=None), "c": after(4, audit=SOFT)}
    scored = terms(cards, 3, SCORING)
    assert [t.weight for t in scored.values()] == [1.0, 0.0, 0.0]
    assert reasons(cards, scored, SCORING) == {"a": "", "b": "no passed audit yet", "c": "no passed audit yet"}


def test_below_one_percent_of_the_best_is_zero() -> None:
    cards = {"a": after(4), "b": after(4, tokens=CAP * 0.009), "c": after(4, tokens=CAP * 0.011)}
    scored = terms(cards, 3, SCORING)
    assert scored["b"].weight == 0.0
    assert scored["c"].weight == pytest.approx(0.011 / 1.011)
    assert reasons(cards, scored, SCORING)["b"] == "below 1 % of the best"


def test_nothing_earned_gives_all_zero() -> None:
    cards = {"a": after(2, tokens=0.0), "b": after(2, audit=None)}
    scored = terms(cards, 1, SCORING)
    assert [t.weight for t in scored.values()] == [0.0, 0.0]
    assert reasons(cards, scored, SCORING)["a"] == "no credited tokens"
    assert terms({}, 1, SCORING) == {}


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 30))
def test_splitting_the_work_over_k_uids_changes_nothing(share: int, k: int, rounds: int) -> None:
    """Equal history, equal link: k parts together earn what the whole earns, as long as none is cut off."""
    tokens = CAP * share / 40
    other = after(rounds)
    whole = weights_of({"a": other, "b": after(rounds, tokens=tokens)}, rounds - 1)["b"]
    parts = {f"b{i}": after(rounds, tokens=tokens / k) for i in range(k)}
    split = weights_of({"a": other, **parts}, rounds - 1)
    if share / 40 / k > SCORING.cutoff:
        assert sum(split[key] for key in parts) == pytest.approx(whole, rel=1e-9)


observations = st.builds(
    lambda r, tokens, audit, goodput, d: seen(r, tokens=tokens, audit=audit, goodput=goodput, duty=d),
    st.just(0),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([None, PASS, SOFT, FAIL, replace(SOFT, quality=nan)]),
    st.none() | st.floats(allow_nan=True, allow_infinity=True),
    st.none() | st.floats(-0.5, 1.5) | st.just(nan),
)


@given(st.lists(st.lists(st.none() | observations, max_size=12), max_size=5), st.randoms())
def test_any_history_gives_finite_terms_and_a_distribution(history: list[list[Observation | None]], rng) -> None:
    cards: dict[str, ScoreCard] = {}
    for index, rounds in enumerate(history):
        key, card = f"m{index}", None
        for r, observation in enumerate(rounds):
            if observation is not None:
                card = fold(card, replace(observation, round=r, hotkey=key, uid=index), SCORING, CAP)
            elif card is not None:
                card = fold_absent(card, r, SCORING)
        if card is not None:
            cards[key] = card
    scored = terms(cards, 11, SCORING)
    total = sum(t.weight for t in scored.values())
    assert total == 0.0 or total == pytest.approx(1.0, abs=1e-12)
    for key, t in scored.items():
        assert all(isfinite(x) and 0.0 <= x <= 1.0 for x in (t.S, t.G, t.B, t.I, t.weight))
        assert (t.weight == 0.0) == bool(reasons(cards, scored, SCORING)[key])
    shuffled = list(cards)
    rng.shuffle(shuffled)
    again = terms({key: cards[key] for key in shuffled}, 11, SCORING)
    assert list(again.items()) == list(scored.items())  # bit for bit, and in uid order


def test_a_restart_changes_nothing() -> None:
    """Folding is pure: going on from a stored copy of the card gives the same card."""
    first = after(30)
    stored = ScoreCard(**{name: getattr(first, name) for name in ScoreCard.__slots__})
    assert fold(stored, seen(30), SCORING, CAP) == after(31)


def test_the_worked_example_of_the_document() -> None:
    cards = {"A": after(5), "B": after(5, tokens=CAP / 2, goodput=1000.0)}
    cards["C"] = fold(fold(after(3), seen(3, audit=FAIL), SCORING, CAP), seen(4), SCORING, CAP)
    scored = terms(cards, 4, SCORING)
    assert [round(t.weight, 3) for t in scored.values()] == [0.692, 0.308, 0.0]
    assert [round(t.S, 4) for t in scored.values()] == [0.0918, 0.0459, 0.0]
    assert cards["C"].zero_until_round == 53
