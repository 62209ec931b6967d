from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import RUN

from distributed_training.protocol.observed import ScoreCard, ScoreTerms
from distributed_training.protocol.rules.weights import (
    U16_MAX,
    appears,
    burn_price,
    row_differs,
    row_to_send,
    u16_weights,
    weight_vector,
)
from distributed_training.protocol.types import BlockRef, Neuron, Roster, SubnetParams


def neuron(uid: int, hotkey: str, registered: int = 5) -> Neuron:
    return Neuron(uid, hotkey, bytes(32), 0.0, False, registered, None, None, None, 0.0, 0.0, 0, bytes(32))


def roster(*neurons: Neuron) -> Roster:
    return Roster(BlockRef(100, bytes(32)), neurons)


def card(hotkey: str, uid: int = 0, registered: int = 5) -> ScoreCard:
    return ScoreCard(hotkey, registered, uid, (), 0.1, 1.0, 0.0, 1.0, (), True, 0, "", "")


def earned(weight: float) -> ScoreTerms:
    return ScoreTerms(S=0.1, G=0.5, B=1.0, I=1.0, weight=weight)


CARDS = {name: card(name) for name in "abc"}
TERMS = {"a": earned(0.5), "b": earned(0.3), "c": earned(0.2)}


def test_weights_go_to_the_uid_the_hotkey_has_now() -> None:
    vector = weight_vector(TERMS, CARDS, roster(neuron(2, "a"), neuron(0, "c"), neuron(1, "b")))
    assert list(vector) == [0, 1, 2]
    assert vector == pytest.approx({0: 0.2, 1: 0.3, 2: 0.5})


def test_a_recycled_uid_and_a_new_registration_get_nothing() -> None:
    vector = weight_vector(TERMS, CARDS, roster(neuron(0, "stranger"), neuron(1, "b", registered=6), neuron(2, "c")))
    assert vector == {2: 1.0}


def test_zero_and_unscored_are_left_out_and_nothing_means_do_not_set() -> None:
    terms = {"a": earned(0.0), "b": earned(1.0)}
    here = roster(neuron(0, "a"), neuron(1, "b"), neuron(2, "c"))
    assert weight_vector(terms, CARDS, here) == {1: 1.0}
    assert weight_vector({"a": earned(0.0)}, CARDS, here) == {}
    assert weight_vector({}, {}, here) == {}
    assert weight_vector(TERMS, CARDS, roster()) == {}


@given(st.dictionaries(st.integers(0, 30), st.floats(1e-6, 1.0), min_size=1), st.randoms())
def test_the_vector_sums_to_one_and_keeps_proportions(shares: dict[int, float], rng) -> None:
    terms = {str(uid): earned(share) for uid, share in shares.items()}
    neurons = [neuron(uid, str(uid)) for uid in shares]
    rng.shuffle(neurons)
    vector = weight_vector(terms, {key: card(key) for key in terms}, roster(*neurons))
    assert sum(vector.values()) == pytest.approx(1.0)
    best = max(shares, key=lambda uid: shares[uid])
    assert all(vector[uid] / vector[best] == pytest.approx(shares[uid] / shares[best]) for uid in shares)


PARAMS = SubnetParams(7, 360, 100, 12.0, "owner", "5G", next_epoch_block=1360)
HERE = roster(neuron(0, "owner"), *(neuron(uid, str(uid)) for uid in range(1, 9)))
SHARES = st.dictionaries(st.integers(0, 255), st.floats(1e-12, 1.0), min_size=1, max_size=40)


@given(SHARES, st.floats(0, 1))
def test_no_share_is_above_the_limit_after_rounding(shares: dict[int, float], place: float) -> None:
    least = -(-U16_MAX // len(shares))
    limit = least + round(place * (U16_MAX - least))
    row = u16_weights(shares, limit)
    assert set(row) == set(shares) and max(row.values()) == U16_MAX and min(row.values()) >= 1
    assert max(row.values()) * U16_MAX <= limit * sum(row.values())
    ordered = sorted(shares, key=lambda uid: shares[uid])
    assert [row[uid] for uid in ordered] == sorted(row.values()), "who earned more has no less"


@given(SHARES)
def test_without_a_limit_the_proportions_stay(shares: dict[int, float]) -> None:
    best = max(shares.values())
    for uid, value in u16_weights(shares, U16_MAX).items():
        assert -0.001 < value - shares[uid] / best * U16_MAX < 1.001


def test_the_limit_that_the_sdk_rounds_over_is_kept() -> None:
    row = u16_weights({1: 0.7, 2: 0.2, 3: 0.1}, 30000)
    assert row[1] / sum(row.values()) <= 30000 / U16_MAX < (row[1] + 1) / sum(row.values())
    assert row[2] / row[3] == pytest.approx(2, rel=1e-3)


def sent(
    earned: dict[int, float], *, burn: float = 0.0, key: int = 3, here: Roster = HERE, **params: int
) -> tuple[dict[int, int], str]:
    """Of miners that did as much work as said."""
    scoring = RUN.scoring.model_copy(update={"burn_share": burn, "cutoff": 0.0})
    cards = {str(uid): replace(card(str(uid), uid), steps=share) for uid, share in earned.items()}
    manifest = RUN.model_copy(update={"scoring": scoring, "version_key": key})
    return row_to_send(cards, 0, here, replace(PARAMS, **params), manifest)


def test_too_few_weights_and_an_old_key_send_nothing_and_say_what_helps() -> None:
    assert sent({1: 0.5, 2: 0.5}) == ({1: U16_MAX, 2: U16_MAX}, "")
    assert sent({}) == ({}, "nothing scored")
    row, why = sent({1: 1.0, 2: 0.0}, min_allowed_weights=2)
    assert row == {} and why.startswith("1 uids have earned a weight and the subnet asks for 2 or more")
    row, why = sent({1: 0.5, 2: 0.5}, max_weight_limit=30000)
    assert row == {} and "asks for 3 or more" in why and "more miners" in why
    row, why = sent({1: 1.0}, version_key=4)
    assert row == {} and "version 4 and newer" in why and "version_key 3: update this node" in why
    assert sent({1: 1.0}, version_key=2) == ({1: U16_MAX}, "")


def test_a_burn_share_goes_to_the_owner_of_the_head_and_never_to_nobody() -> None:
    row, _ = sent({1: 0.5, 2: 0.5}, burn=0.2)
    assert {uid: value / sum(row.values()) for uid, value in row.items()} == pytest.approx(
        {0: 0.2, 1: 0.4, 2: 0.4}, abs=1e-4
    )
    assert sent({1: 1.0}, burn=1.0)[0] == {0: U16_MAX}
    assert sent({}, burn=0.5)[0] == {}, "the owner is no fallback for nothing scored"
    assert sent({1: 1.0}, burn=0.5, here=roster(neuron(1, "1"))) == ({1: U16_MAX}, "")
    assert burn_price(0.0) == "" and "emission is scaled to 80 %" in burn_price(0.2)


def test_a_commit_appears_in_the_epoch_in_which_it_is_revealed() -> None:
    assert appears(1200, PARAMS) == (1200, 1200)
    hidden = replace(PARAMS, commit_reveal=True)
    assert appears(1200, hidden) == (1360, 1719)
    assert appears(1200, replace(hidden, reveal_period=3)) == (2080, 2439)
    assert appears(1360, hidden) == (1720, 2079), "it landed in the next epoch"
    later = replace(hidden, next_epoch_block=1720)
    assert appears(1200, later) == (1360, 1719), "a set that nobody answered, looked up in the next epoch"


def test_a_row_is_compared_by_its_shares() -> None:
    row = {1: U16_MAX, 2: 21845}
    assert row_differs(row, {1: 0.75, 2: 0.25}) is None
    assert row_differs(row, {1: 0.75, 3: 0.25}) == "2 of 2 shares differ, uid 2 has 0.00000 instead of 0.25000"
    assert row_differs(row, {}) is not None
