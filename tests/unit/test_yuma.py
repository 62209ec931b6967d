"""Yuma consensus against the public runtime's test vectors and its invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.protocol.rules.yuma import (
    U16_MAX,
    EpochInput,
    EpochResult,
    YumaParams,
    consensus,
    next_permits,
    run_epoch,
    u16,
    upscale_weights,
)

PARAMS = YumaParams()


def make_state(stake: list[float], **changes: object) -> EpochInput:
    n = len(stake)
    state = EpochInput(
        block=2,
        last_epoch_block=0,
        tempo=1000,
        owner_uid=None,
        stake=np.array(stake, dtype=np.float64),
        permits=np.array([s > 0 for s in stake]),
        last_update=np.ones(n, dtype=np.int64),
        registered=np.zeros(n, dtype=np.int64),
        weights=np.zeros((n, n), dtype=np.uint16),
        bonds=np.zeros((n, n), dtype=np.uint16),
    )
    return replace(state, **changes)


def test_bonds_match_the_public_test_bonds_vectors() -> None:
    """Eight neurons, stakes 1 to 4; then one validator after another judges only itself (runtime test `test_bonds`)."""
    weights = np.zeros((8, 8), dtype=np.uint16)
    weights[:4, 4:] = upscale_weights([U16_MAX // 4, U16_MAX // 2, U16_MAX // 4 * 3, U16_MAX])
    assert weights[0, 4:].tolist() == [16383, 32767, 49149, 65535]
    state = make_state([1, 2, 3, 4, 0, 0, 0, 0], weights=weights)

    def epoch(block: int) -> EpochResult:
        nonlocal state
        state = replace(state, block=block, last_epoch_block=block - 1)
        result = run_epoch(state, PARAMS)
        state = replace(state, bonds=result.bonds)
        return result

    def judge_only(uid: int, target: int) -> None:
        state.weights[uid] = 0
        state.weights[uid, target] = U16_MAX

    first = epoch(2)
    assert first.bonds[:4, 4].tolist() == [16383, 32767, 49151, 65535]
    np.testing.assert_allclose(first.incentive[4:], [0.0999975582, 0.2000012207, 0.2999926752, 0.4000085455], atol=1e-8)
    np.testing.assert_allclose(first.dividends[:4], [0.1, 0.2, 0.3, 0.4], atol=1e-8)
    np.testing.assert_allclose(first.emission[[0, 7]], [0.0499999989, 0.2000042726], atol=1e-8)

    judge_only(0, 0)
    second = epoch(3)
    assert second.bonds[:4, 4].tolist() == [14582, 32767, 49151, 65535]
    np.testing.assert_allclose(second.dividends[:4], [0.0899967032, 0.2022211233, 0.303334432, 0.404447741], atol=1e-8)

    judge_only(1, 1)
    third = epoch(4)
    assert third.bonds[:4, 4].tolist() == [12603, 28321, 49151, 65535]
    np.testing.assert_allclose(third.dividends[:4], [0.0809936118, 0.1819995677, 0.3158592721, 0.421147548], atol=1e-8)

    # Only 40 % of the stake still judges miners: no consensus, emission by stake. Fixed point loses one unit here.
    judge_only(2, 2)
    fourth = epoch(5)
    assert not fourth.incentive.any() and not fourth.dividends.any()
    np.testing.assert_allclose(fourth.emission[:4], [0.1, 0.2, 0.3, 0.4], atol=1e-8)
    np.testing.assert_allclose(fourth.bonds[:4, 7].astype(float), [12602, 28320, 49150, 65535], atol=1)

    judge_only(2, 7)
    expected_bonds = [[10951, 24609, 49150, 65535], [9559, 21482, 49150, 65535], [8376, 18824, 49150, 65535]]
    expected_dividends = [
        [0.0728874663, 0.1637972582, 0.3271309866, 0.4361842885],
        [0.0655988548, 0.1474132247, 0.3372762585, 0.4497116616],
        [0.0590361361, 0.1326722752, 0.3464062694, 0.4618853189],
    ]
    for block, bonds, dividends in zip((6, 7, 8), expected_bonds, expected_dividends, strict=True):
        result = epoch(block)
        np.testing.assert_allclose(result.bonds[:4, 7].astype(float), bonds, atol=2)
        np.testing.assert_allclose(result.dividends[:4], dividends, atol=2e-5)
        assert result.incentive.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_weights_older_than_the_judged_uid_do_not_count() -> None:
    """Runtime test `test_outdated_weights`: a uid registered after the weights were set earns nothing from them."""
    weights = np.zeros((4, 4), dtype=np.uint16)
    weights[:2, 2:] = [21845, 43690]
    state = make_state([1, 1, 0, 0], weights=weights, block=6)
    np.testing.assert_allclose(run_epoch(state, PARAMS).incentive, [0, 0, 1 / 3, 2 / 3], atol=1e-9)
    reborn = replace(state, registered=np.array([0, 0, 0, 5]))
    assert run_epoch(reborn, PARAMS).incentive.tolist() == [0, 0, 1, 0]


def test_an_inactive_validator_has_no_say() -> None:
    weights = np.zeros((4, 4), dtype=np.uint16)
    weights[0, 2] = weights[1, 3] = U16_MAX
    state = make_state([1, 3, 0, 0], weights=weights, tempo=100, block=1500, last_update=np.array([1499, 2, 1, 1]))
    result = run_epoch(state, PARAMS)
    assert result.active.tolist() == [True, False, False, False]
    assert result.incentive.tolist() == [0, 0, 1, 0]


def test_a_validator_without_permit_waits_one_epoch_and_losing_it_deletes_bonds() -> None:
    weights = np.zeros((3, 3), dtype=np.uint16)
    weights[0, 2] = U16_MAX
    state = make_state([1, 1, 0], weights=weights, permits=np.array([False, True, False]))
    first = run_epoch(state, PARAMS)
    assert not first.incentive.any() and first.permits.tolist() == [True, True, False]
    second = run_epoch(replace(state, permits=first.permits), PARAMS)
    assert second.incentive.tolist() == [0, 0, 1] and second.bonds[0, 2] == U16_MAX
    third = run_epoch(replace(state, permits=first.permits, stake=np.array([0.0, 1.0, 0.0])), PARAMS)
    assert not third.permits[0] and not third.bonds[0].any()


def test_bonds_of_a_recycled_uid_start_from_zero() -> None:
    """Runtime test `test_deregistered_miner_bonds`: bonds held before the uid was registered anew are masked."""
    weights = np.zeros((3, 3), dtype=np.uint16)
    weights[0, 2] = weights[1, 2] = U16_MAX
    bonds = np.zeros((3, 3), dtype=np.uint16)
    bonds[0, 2] = U16_MAX
    state = make_state(
        [1, 1, 0], weights=weights, bonds=bonds, block=20, last_epoch_block=10, last_update=np.full(3, 15)
    )
    assert run_epoch(state, PARAMS).dividends[0] == pytest.approx(0.95)
    reborn = replace(state, registered=np.array([0, 0, 12]))
    assert run_epoch(reborn, PARAMS).dividends[0] == pytest.approx(0.5)


def test_only_the_owner_may_pay_itself() -> None:
    weights = np.diag([U16_MAX] * 3).astype(np.uint16)
    state = make_state([1, 1, 1], weights=weights)
    assert not run_epoch(state, PARAMS).incentive.any()
    owned = replace(state, owner_uid=1, stake=np.array([1.0, 3.0, 1.0]))
    assert run_epoch(owned, PARAMS).incentive.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("supporters", "level"), [(0.4, 0.0), (0.5, 1.0), (0.6, 1.0)])
def test_consensus_is_what_about_half_the_stake_supports(supporters: float, level: float) -> None:
    votes = np.array([[1.0], [0.0]])
    assert consensus(np.array([supporters, 1 - supporters]), votes, 32767 / U16_MAX).tolist() == [level]


def test_permits_go_to_the_largest_stakes_and_to_the_owner() -> None:
    stake = np.array([0.0, 2.0, 1.0, 1.0, 3.0])
    assert next_permits(stake, 3, None).tolist() == [False, True, False, True, True]  # a tie goes to the higher uid
    assert next_permits(stake, 3, 0).tolist() == [True, True, False, True, True]
    assert next_permits(np.zeros(2), 3, None).tolist() == [False, False]


def test_u16_floors() -> None:
    assert u16(np.array([0.0, 0.25, 0.5, 1.0])).tolist() == [0, 16383, 32767, 65535]


@st.composite
def states(draw: st.DrawFn) -> EpochInput:
    n = draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.integers(0, U16_MAX + 1, (n, n)) * (rng.random((n, n)) < 0.7)
    bonds = rng.integers(0, U16_MAX + 1, (n, n)) * (rng.random((n, n)) < 0.7)
    return EpochInput(
        block=100,
        last_epoch_block=draw(st.integers(0, 99)),
        tempo=draw(st.integers(1, 20)),
        owner_uid=draw(st.none() | st.integers(0, n - 1)),
        stake=rng.random(n) * (rng.random(n) < 0.8),
        permits=rng.random(n) < 0.8,
        last_update=rng.integers(0, 100, n),
        registered=rng.integers(0, 60, n),
        weights=weights.astype(np.uint16),
        bonds=bonds.astype(np.uint16),
    )


def sums_to_one_or_zero(values: np.ndarray) -> bool:
    return bool((values >= 0).all()) and (not values.any() or values.sum() == pytest.approx(1.0))


@settings(max_examples=150, deadline=None)
@given(states())
def test_shares_are_non_negative_and_sum_to_one(state: EpochInput) -> None:
    result = run_epoch(state, PARAMS)
    assert sums_to_one_or_zero(result.incentive)
    assert sums_to_one_or_zero(result.dividends)
    assert sums_to_one_or_zero(result.emission)
    assert (result.validator_trust <= 1 + 1e-9).all() and result.rank.sum() <= 1 + 1e-9
    assert not result.bonds[~result.permits].any()
    if result.permits.all():
        assert set(result.bonds.max(axis=0).tolist()) <= {0, U16_MAX}


@settings(max_examples=100, deadline=None)
@given(states(), st.randoms(use_true_random=False))
def test_renaming_uids_renames_the_result(state: EpochInput, random: object) -> None:
    order = list(range(len(state.stake)))
    random.shuffle(order)  # type: ignore[attr-defined]
    renamed = replace(
        state,
        owner_uid=None if state.owner_uid is None else order.index(state.owner_uid),
        stake=state.stake[order],
        permits=state.permits[order],
        last_update=state.last_update[order],
        registered=state.registered[order],
        weights=state.weights[np.ix_(order, order)],
        bonds=state.bonds[np.ix_(order, order)],
    )
    before, after = run_epoch(state, PARAMS), run_epoch(renamed, PARAMS)
    np.testing.assert_allclose(before.incentive[order], after.incentive, atol=1e-9)
    np.testing.assert_allclose(before.dividends[order], after.dividends, atol=1e-9)
    np.testing.assert_array_equal(before.permits[order], after.permits)


@settings(max_examples=100, deadline=None)
@given(states(), st.floats(0.1, 1e6))
def test_only_stake_shares_matter(state: EpochInput, factor: float) -> None:
    scaled = run_epoch(replace(state, stake=state.stake * factor), PARAMS)
    np.testing.assert_allclose(run_epoch(state, PARAMS).incentive, scaled.incentive, atol=1e-9)


@given(st.lists(st.integers(0, U16_MAX), max_size=20))
def test_upscaling_keeps_proportions(values: list[int]) -> None:
    scaled = upscale_weights(values)
    top = max(values, default=0)
    assert len(scaled) == len(values)
    assert all(0 <= value * U16_MAX - up * top < top for value, up in zip(values, scaled, strict=True)) or top == 0
