from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, Verdict
from distributed_training.protocol.rules.scoring import (
    bandwidth,
    condemn,
    fidelity,
    fold,
    fold_absent,
    integrity,
    reasons,
    terms,
    vested,
)
from distributed_training.protocol.sections import ScoringSection

SCORING = ScoringSection(
    vesting_rounds=24,
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
    assert card.steps == pytest.approx(1 / 24**4, rel=1e-12)
    assert (t.G, t.I, t.B, t.weight) == (1.0, 1.0, 1.0, 1.0)
    assert (card.passed_audit, card.reason, card.note) == (True, "", "round 0: pass, 9 steps")


def test_golden_fourth_round_with_a_soft_failure_and_a_slow_link() -> None:
    card = after(3, goodput=1000.0)
    card = fold(card, seen(3, audit=SOFT, goodput=1000.0, duty=0.5), SCORING, CAP)
    (t,) = terms({"a": card}, 3, SCORING).values()
    keep = 0.5 ** (1 / 50)
    p, f = keep + keep**2 + keep**3 + 0.3, 0.7
    expected_i = 0.5 ** (1 / 6) + (1 - 0.5 ** (1 / 6)) * 0.5
    expected = ((4 / 24) ** 4, (1 + p) / (1 + p + 10 * f), log(5) / log(17), expected_i, 1.0)
    assert (t.S, t.G, t.B, t.I, t.weight) == pytest.approx(expected, rel=1e-12)
    assert card.note == "round 3: soft, gradient at step 2 (error 0.06)"


@pytest.mark.parametrize(
    ("passes", "fails", "expected"), [(0, 0, 1), (9, 0, 1), (9, 1, 0.5), (0, 0.1, 0.5), (19, 1, 2 / 3)]
)
def test_fidelity_falls_with_soft_failures_alone(passes: float, fails: float, expected: float) -> None:
    card = replace(after(1), passes=float(passes), fails=float(fails))
    assert fidelity(card, 0, SCORING) == pytest.approx(expected)


def test_work_vests_late_and_is_forgotten_as_it_was_done() -> None:
    assert [after(n).steps for n in (12, 24, 60)] == [0.5**4, 1.0, 1.0]
    assert after(23).steps == pytest.approx((23 / 24) ** 4)
    card = after(48)
    for r in range(48, 72):
        card = fold_absent(card, r, SCORING)
        assert card.steps == pytest.approx(1 - (r - 47) / 24)
    assert card.steps == 0.0


def test_a_round_of_much_work_is_worth_nothing_without_as_much_before_and_after() -> None:
    once = vested([1.0] + [0.01] * 23, 24)
    assert once < 0.0101
    assert vested([0.01] * 40 + [1.0] * 3, 24) - vested([0.01] * 43, 24) == pytest.approx(0.99 * (3 / 24) ** 4)
    assert vested([1.0] + [0.0] * 30, 24) == 0.0


@given(st.lists(st.integers(0, 8), max_size=48), st.integers(0, 48))
def test_more_work_never_earns_less(work: list[int], at: int) -> None:
    some = [w / 8 for w in work]
    more = [w + 0.125 * (i == at) for i, w in enumerate(some)]
    assert 0.0 <= vested(some, 24) <= vested(more, 24) + 1e-12
    assert vested(some, 24) <= sum(some[-24:]) / 24 + 1e-12


@pytest.mark.parametrize("every", [2, 3, 6, 12])
def test_who_is_absent_now_and_then_is_paid_for_what_it_did(every: int) -> None:
    work = [float(r % every != 0) for r in range(48)]
    assert vested(work, 24) == pytest.approx(1 - 1 / every)


def test_speed_that_varies_is_paid_in_the_mean() -> None:
    work = [0.9 + 0.1 * ((r * 29) % 48) / 48 for r in range(48)]
    assert vested(work, 24) == pytest.approx(sum(work[-24:]) / 24, rel=0.01)


def test_a_newcomer_of_equal_speed_stands_level_after_the_vesting_rounds() -> None:
    old, new = None, None
    for r in range(124):
        old = fold(old, seen(r, hotkey="old"), SCORING, CAP)
        new = fold(new, seen(r, hotkey="new", uid=2), SCORING, CAP) if r >= 100 else None
    assert old is not None and new is not None
    assert weights_of({"old": old, "new": new}, 123) == {"old": 0.5, "new": 0.5}


def test_absence_costs_steps_and_evidence_but_not_integrity_or_probes() -> None:
    before = after(10, duty=0.9)
    card = fold_absent(before, 10, SCORING)
    assert card.work == (*before.work, 0.0) and card.steps == before.steps < after(11, duty=0.9).steps
    assert card.passes == pytest.approx(before.passes * 0.5 ** (1 / 50))
    assert (card.integrity, card.goodput, card.reason) == (before.integrity, before.goodput, "")
    assert card.note == before.note


def test_soft_failures_fade_with_their_age() -> None:
    soft = fold(after(3), seen(3, audit=SOFT), SCORING, CAP)
    later = soft
    for r in range(4, 54):
        later = fold_absent(later, r, SCORING)
    assert (later.passes, later.fails) == pytest.approx((soft.passes / 2, soft.fails / 2))


def test_who_is_away_until_nothing_is_left_is_absent() -> None:
    card = after(1)
    reasons_told = [(card := fold_absent(card, r, SCORING)).reason for r in range(1, 25)]
    assert reasons_told == [""] * 23 + ["absent"]


def test_absence_is_the_reason_only_where_nothing_was_earned() -> None:
    unproven = fold(None, seen(audit=None), SCORING, CAP)
    assert (unproven.reason, fold_absent(unproven, 1, SCORING).reason) == ("no passed audit yet", "absent")
    lazy = after(9, duty=0.1)
    assert fold_absent(lazy, 9, SCORING).reason == "integrity below floor"


def test_integrity_starts_at_the_first_duty_and_snaps_to_zero_below_the_floor() -> None:
    card = fold(None, seen(duty=0.7), SCORING, CAP)
    assert (card.integrity, integrity(card, SCORING)) == (0.7, 0.7)
    assert integrity(fold(None, seen(duty=0.5), SCORING, CAP), SCORING) == 0.5
    assert fold(None, seen(duty=0.0), SCORING, CAP).integrity == 0.0
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


def test_bandwidth_is_the_mean_of_the_kept_probes() -> None:
    card = None
    for r, goodput in enumerate([0.0, 4000.0, 1000.0, 0.0, 9e9, 4000.0, 4000.0, 4000.0, 4000.0]):
        card = fold(card, seen(r, goodput=goodput), SCORING, CAP)
    assert card is not None
    assert card.goodput == (4000.0, 1000.0, 0.0, 9e9, 4000.0, 4000.0, 4000.0, 4000.0)  # eight kept, oldest first
    assert bandwidth(card, SCORING) == pytest.approx((6 + log(5) / log(17)) / 8)


@given(st.lists(st.floats(0, 1e9), min_size=8, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_nobody_gains_by_leaving_probes_unanswered(speeds: list[float], skipped: list[bool]) -> None:
    def score(values: list[float]) -> float:
        card = None
        for r, goodput in enumerate(values):
            card = fold(card, seen(r, goodput=goodput), SCORING, CAP)
        assert card is not None
        return bandwidth(card, SCORING)

    answered = score([0.0 if skip else speed for speed, skip in zip(speeds, skipped, strict=True)])
    assert answered <= score(speeds) and answered <= 1 - sum(skipped) / 8 + 1e-12  # half skipped: half of B lost


def test_never_probed_is_not_a_penalty_but_an_unanswered_probe_is() -> None:
    assert bandwidth(after(1, goodput=None), SCORING) == 1.0
    free, little = (SCORING.model_copy(update={"goodput_required": needed}) for needed in (0.0, 1.0))
    assert (bandwidth(after(1, goodput=3.0), free), bandwidth(after(1, goodput=0.0), little)) == (1.0, 0.0)
    cards = {"a": after(5, goodput=None), "b": after(5, goodput=0.0)}
    w = weights_of(cards, 4)
    assert w["b"] / w["a"] == pytest.approx(0.75)


def test_tokens_above_the_cap_count_as_the_cap() -> None:
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
    assert (fidelity(card, 70, SCORING), card.reason) == (1.0, "no passed audit yet")
    card = fold(card, seen(71), SCORING, CAP)
    newcomer = fold(fold(None, seen(70, audit=None), SCORING, CAP), seen(71), SCORING, CAP)
    assert (card.steps, card.passes, card.fails) == (newcomer.steps, newcomer.passes, newcomer.fails)
    assert weights_of({"a": card}, 71) == {"a": 1.0}


def test_who_is_condemned_after_the_fold_stands_as_if_the_audit_had_failed_in_its_round() -> None:
    late = condemn(fold(after(20), seen(20), SCORING, CAP), 19, FAIL, SCORING)
    assert (late.zero_until_round, late.steps, late.work, late.passed_audit) == (69, 0.0, (), False)
    assert late.reason == "audit failed: gradient at step 0 (error 1.37)"
    assert weights_of({"a": late}, 20) == {"a": 0.0}
    at_once = fold(after(20), seen(20, audit=FAIL), SCORING, CAP)
    assert condemn(after(20), 20, FAIL, SCORING) == replace(at_once, goodput=after(20).goodput)
    assert condemn(at_once, 10, FAIL, SCORING).zero_until_round == 70  # an older one does not shorten it


def test_a_second_failure_starts_the_penalty_again_and_absence_does_not_shorten_it() -> None:
    card = fold(fold(None, seen(0, audit=FAIL), SCORING, CAP), seen(30, audit=FAIL), SCORING, CAP)
    assert card.zero_until_round == 80
    assert fold_absent(card, 31, SCORING) == fold_absent(card, 79, SCORING) == card
    assert fold_absent(card, 80, SCORING).reason == "absent"  # a newcomer again


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
    assert (again.steps, again.note) == (0.0, card.note)
    assert fold(after(3), seen(3, hotkey="b", audit=None), SCORING, CAP).note == ""
    assert weights_of({"a": again}, 10) == {"a": 0.0}
    assert fold(card, seen(10, hotkey="b"), SCORING, CAP).zero_until_round == 0
    kept = [fold(card, seen(r, registered=99), SCORING, CAP).zero_until_round for r in (52, 53, 60)]
    assert kept == [53, 0, 0]


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
    assert reasons(cards, scored, SCORING)["b"] == "below 1 % of the best until more has vested: round 4 of 24"
    old = {"a": after(24), "b": after(24, tokens=CAP * 0.009)}
    assert reasons(old, terms(old, 23, SCORING), SCORING)["b"] == "below 1 % of the best"


def test_who_is_exactly_at_the_cutoff_is_paid() -> None:
    alone = SCORING.model_copy(update={"cutoff": 1.0})
    assert terms({"a": after(4)}, 3, alone)["a"].weight == 1.0


def test_work_older_than_twice_the_vesting_rounds_is_forgotten() -> None:
    card = after(24)
    for r in range(24, 60):
        card = fold_absent(card, r, SCORING)
    assert fold(card, seen(60), SCORING, CAP).steps == pytest.approx(1 / 24 * (12 / 24) ** 3)


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
    assert [round(t.S, 4) for t in scored.values()] == [0.0019, 0.0009, 0.0]
    assert cards["C"].zero_until_round == 53
