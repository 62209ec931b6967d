from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.rules.weights import weight_vector
from distributed_training.protocol.types import BlockRef, Neuron, Roster, ScoreCard, ScoreTerms


def neuron(uid: int, hotkey: str, registered: int = 5) -> Neuron:
    return Neuron(uid, hotkey, bytes(32), 0.0, False, registered, None, None, None, 0.0, 0.0, 0)


def roster(*neurons: Neuron) -> Roster:
    return Roster(BlockRef(100, bytes(32)), neurons)


def card(hotkey: str, uid: int = 0, registered: int = 5) -> ScoreCard:
    return ScoreCard(hotkey, registered, uid, 0.1, 1.0, 0.0, 1.0, (), True, 0, "", "")


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
