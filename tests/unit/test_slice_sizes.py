"""Who reduces, and how much: by what was earned, whatever identities there are."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import BEACON, RUN, failed, key, neuron, roster
from test_membership import members

from distributed_training.protocol.rules.slices import earned, reducers, slices
from distributed_training.protocol.types import Candidate, Carry

AVERAGE = RUN.average.model_copy(update={"min_counted": 2})
NONE = Carry(1.0, ())
NOBODY: dict[bytes, int] = {}


def who(found: list[tuple[Candidate, int]]) -> dict[int, int]:
    return {c.uid: weight for c, weight in found}


def sizes(weights: list[int], chunks: int, *, least: int = 1) -> list[int]:
    people = (Candidate(i, str(i), key(i), 1, key(i), None, key(i), reduces=True) for i in range(len(weights)))
    ordered = list(zip(people, weights, strict=True))
    specs = slices(ordered, chunks, AVERAGE.model_copy(update={"min_counted": least}))
    assert [c for s in specs for c in range(s.first_chunk, s.last_chunk)] == list(range(chunks))
    assert [s.index for s in specs] == list(range(len(specs)))
    taken = {s.reducer: s.last_chunk - s.first_chunk for s in specs}
    assert len(taken) == len(specs) and all(taken.values())
    return [taken.get(c.public_key, 0) for c, _ in ordered]


def test_reducers_stand_in_the_order_of_the_beacon() -> None:
    people = members(1, 2, 3, 4, 5)
    ordered = reducers(people, NOBODY, NONE, BEACON, AVERAGE)
    hashes = [blake2b(BEACON + c.public_key, digest_size=32).digest() for c, _ in ordered]
    assert hashes == sorted(hashes) and who(ordered) == dict.fromkeys((1, 2, 3, 4, 5), 1)
    assert reducers(people[::-1], NOBODY, NONE, BEACON, AVERAGE) == ordered
    assert len({tuple(reducers(people, NOBODY, NONE, bytes([i] * 32), AVERAGE)) for i in range(20)}) > 10


def test_incentive_is_read_in_the_chain_s_own_steps() -> None:
    every = [step / 65535 for step in range(65536)]
    assert [round(x * 65535) for x in every] == list(range(65536))
    people = roster(neuron(1, incentive=1 / 65535), neuron(2, incentive=0.0), neuron(3, incentive=float(30000 / 65535)))
    assert earned(people) == {key(1): 1, key(2): 0, key(3): 30000}
    assert earned(roster(neuron(1, incentive=1.0), neuron(2, incentive=40000 / 65535))) == {
        key(1): 65535,
        key(2): 40000,
    }


INCENTIVE = {key(1): 5, key(2): 9, key(3): 1}
HISTORY = {
    "who has none reduces nothing": (INCENTIVE, (), {1: 5, 2: 9, 3: 1}),
    "nobody has any, as in a new run": (NOBODY, (), {1: 1, 2: 1, 3: 1, 4: 1}),
    "fewer than Q have any": ({key(2): 9}, (), {1: 1, 2: 1, 3: 1, 4: 1}),
    "failed eight rounds ago": (INCENTIVE, (failed(1), *[()] * 7), {2: 9, 3: 1}),
    "failed in the last": (INCENTIVE, (*[()] * 7, failed(2)), {1: 5, 3: 1}),
    "fewer than Q of the earning are left": (INCENTIVE, (failed(1), failed(2)), {3: 1, 4: 1}),
    "failed, and nobody has any": (NOBODY, (failed(1),), {2: 1, 3: 1, 4: 1}),
    "fewer than Q are left at all": (NOBODY, (failed(1, 2), failed(3)), {1: 1, 2: 1, 3: 1, 4: 1}),
    "somebody else": ({**INCENTIVE, key(9): 7}, (failed(8),), {1: 5, 2: 9, 3: 1}),
}


@pytest.mark.parametrize("name", HISTORY)
def test_reducers_by_incentive_and_history(name: str) -> None:
    incentive, history, expected = HISTORY[name]
    assert who(reducers(members(1, 2, 3, 4), incentive, Carry(1.0, history), BEACON, AVERAGE)) == expected


def test_who_is_not_willing_never_reduces() -> None:
    people = (*members(1, 2), *members(3, reduces=False))
    assert who(reducers(people, {key(3): 9}, Carry(1.0, (failed(1, 2),)), BEACON, AVERAGE)) == {1: 1, 2: 1}
    assert reducers(members(1, 2, reduces=False), NOBODY, NONE, BEACON, AVERAGE) == [] and not slices([], 7, AVERAGE)


def test_no_more_than_max_reducers() -> None:
    most = AVERAGE.model_copy(update={"max_reducers": 3})
    assert len(reducers(members(1, 2, 3, 4), NOBODY, NONE, BEACON, most)) == 3


@pytest.mark.parametrize(
    ("weights", "chunks", "expected"),
    [
        ([1] * 4, 7, [2, 2, 1, 2]),
        ([9] * 12, 24, [2] * 12),
        ([4, 2, 2], 16, [8, 4, 4]),
        ([65535, 1, 1, 1], 8, [8, 0, 0, 0]),  # three who earn next to nothing reduce nothing
        ([100, 1, 99], 200, [100, 1, 99]),
        ([60, 10, 10, 10, 10], 100, [60, 10, 10, 10, 10]),
        ([30, *[7] * 10], 1000, [280, *[72] * 10]),  # the cap: 2 * (900 + 490) / 100^2
    ],
)
def test_slices_are_in_proportion_to_what_was_earned(weights: list[int], chunks: int, expected: list[int]) -> None:
    assert sizes(weights, chunks) == pytest.approx(expected, abs=2 if len(weights) == 11 else 0)


def test_a_round_never_has_too_few_slices_to_count() -> None:
    assert sizes([65535, 1, 1, 1], 8, least=2) == [2, 2, 2, 2]
    assert sizes([1, 1], 1, least=2) == [1, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 65535), min_size=1, max_size=40), st.integers(1, 600))
@example([100] * 12 + [2] * 28, 475)
def test_a_group_has_little_more_than_it_earned(weights: list[int], chunks: int) -> None:
    """No cap by head count: small identities of a big registration campaign would hold most of the vector."""
    dealt, total = sizes(weights, chunks), sum(weights)
    cap = 2 * sum(w * w for w in weights) / total**2
    assert all(size < chunks * cap + 1 for size in dealt)
    small = [j for j, w in enumerate(weights) if w <= cap * total]
    rounding = len(small) + 1
    assert sum(dealt[j] for j in small) <= sum(weights[j] for j in small) / total * chunks + chunks / 8 + rounding


def test_two_hundred_small_identities_do_not_take_the_vector_over() -> None:
    """Together they earn 29 %; with slices of at most twice an equal share they would reduce 90 %."""
    dealt = sizes([100] * 12 + [2] * 200, 475)
    assert sum(dealt[12:]) <= 0.26 * 475 and sum(dealt[:12]) > 0.74 * 475
