from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BEACON, ROUND, RUN, carry_round, commitment, key, neuron, roster

from distributed_training.protocol.rules.membership import (
    candidates,
    reducers,
    slices,
)
from distributed_training.protocol.sections import AccessSection
from distributed_training.protocol.types import Candidate, Carry, Role

AVERAGE = RUN.average.model_copy(update={"min_counted": 2})
NONE = Carry(1.0, ())


def numbers(found: tuple[Candidate, ...]) -> list[int]:
    return [c.uid for c in found]


def members(*who: int, reduces: bool = True) -> tuple[Candidate, ...]:
    return candidates(
        ROUND,
        roster(*(neuron(i) for i in who)),
        roster(*(neuron(i, commitment=commitment(i, reduces=reduces)) for i in who)),
        RUN.access,
    )


# --- candidates ----------------------------------------------------------------------------------------


def test_candidates_come_in_the_order_of_their_public_keys() -> None:
    people = [neuron(3), neuron(1), neuron(2)]
    found = candidates(ROUND, roster(*people), roster(*people[::-1]), RUN.access)
    assert numbers(found) == [1, 2, 3]
    first = found[0]
    assert (first.public_key, first.peer_key, first.record_hash) == (key(1), key(1, "peer"), key(1, "first"))
    assert (first.address, first.registered_block, first.reduces) == (("127.0.0.1", 9001), 1, True)


def test_identity_and_address_are_those_of_the_roster() -> None:
    later = neuron(1, uid=9, address=("10.0.0.1", 1), commitment=commitment(1, reduces=False))
    (found,) = candidates(ROUND, roster(neuron(1)), roster(later), RUN.access)
    assert (found.uid, found.address, found.reduces) == (1, ("127.0.0.1", 9001), False)


@pytest.mark.parametrize(
    ("block", "counts"),
    [
        (None, False),
        (0, False),
        (ROUND.start_block, False),
        (ROUND.start_block + 1, True),
        (ROUND.commit_block, True),
        (ROUND.commit_block + 1, False),
    ],
)
def test_a_work_hash_counts_when_written_after_the_start_and_by_the_commit_block(
    block: int | None, counts: bool
) -> None:
    found = candidates(ROUND, roster(neuron(1)), roster(neuron(1, commitment_block=block)), RUN.access)
    assert numbers(found) == [1] * counts


LATER: dict[str, dict[str, Any]] = {
    "registered again": {"registered_block": 2},
    "another role": {"commitment": commitment(1, Role.VALIDATOR)},
    "another peer key": {"commitment": commitment(1, peer_key=key(9, "peer"))},
    "another run": {"commitment": commitment(1, run=bytes(8))},
    "an older round": {"commitment": commitment(1, first_round=2)},
    "no work hash": {"commitment": commitment(1, first=None, first_round=None)},
    "malformed": {"commitment": None},
    "another hotkey": {"public_key": key(7)},
}


@pytest.mark.parametrize("change", LATER)
def test_who_is_no_candidate(change: str) -> None:
    at_commit = roster(replace(neuron(1), **LATER[change]), neuron(2))
    assert numbers(candidates(ROUND, roster(neuron(1), neuron(2)), at_commit, RUN.access)) == [2]


def test_nobody_joins_a_round_that_has_begun() -> None:
    both = roster(neuron(1), neuron(2))
    assert numbers(candidates(ROUND, roster(neuron(1)), both, RUN.access)) == [1]
    assert numbers(candidates(ROUND, roster(neuron(1, commitment=None), neuron(2)), both, RUN.access)) == [2]
    assert numbers(candidates(ROUND, both, roster(neuron(2)), RUN.access)) == [2]  # left the subnet meanwhile
    elsewhere = neuron(1, commitment=commitment(1, run=bytes(8)))
    assert numbers(candidates(ROUND, roster(elsewhere, neuron(2)), both, RUN.access)) == [
        2
    ]  # came from another run meanwhile


@pytest.mark.parametrize(
    ("hotkeys", "coldkeys", "found"),
    [((), (), [1, 2, 3]), ((2,), (), [2]), ((), (3,), [3]), ((2,), (3,), [2, 3]), ((), (9,), [])],
)
def test_a_list_of_hotkeys_or_of_coldkeys_leaves_all_others_out(
    hotkeys: tuple[int, ...], coldkeys: tuple[int, ...], found: list[int]
) -> None:
    access = AccessSection(
        hotkeys=sorted(key(i).hex() for i in hotkeys), coldkeys=sorted(key(i, "coldkey").hex() for i in coldkeys)
    )
    people = roster(*(neuron(i) for i in (1, 2, 3)))
    assert numbers(candidates(ROUND, people, people, access)) == found
    bought = roster(*(neuron(i, coldkey=key(3, "coldkey")) for i in (1, 2, 3)))
    assert numbers(candidates(ROUND, people, bought, access)) == found  # who owned it at s-B decides


# --- reducers and slices -----------------------------------------------------------------------------


def test_reducers_stand_in_the_order_of_the_beacon() -> None:
    people = members(1, 2, 3, 4, 5)
    ordered = reducers(people, NONE, 0, BEACON, AVERAGE)
    hashes = [blake2b(BEACON + c.public_key, digest_size=32).digest() for c in ordered]
    assert hashes == sorted(hashes) and set(ordered) == set(people)
    assert reducers(people[::-1], NONE, 0, BEACON, AVERAGE) == ordered
    orders = {tuple(reducers(people, NONE, 0, bytes([i] * 32), AVERAGE)) for i in range(20)}
    assert len(orders) > 10


HISTORY = {
    "included once in the last four": ([carry_round((1,)), *[carry_round((2, 3))] * 3], 4, {1, 2, 3}),
    "included too long ago": ([carry_round((1,)), *[carry_round((2, 3))] * 4], 5, {2, 3}),
    "failed eight rounds ago": ([carry_round((1, 2, 3), (1,)), *[carry_round((1, 2, 3))] * 7], 8, {2, 3}),
    "failed nine rounds ago": ([carry_round((), (1,)), *[carry_round((1, 2, 3))] * 8], 9, {1, 2, 3}),
    "failed in the last": ([*[carry_round((1, 2, 3))] * 3, carry_round((1, 2, 3), (3,))], 4, {1, 2}),
    "fewer than four applied": ([carry_round((2, 3), (1,))] * 3, 3, {1, 2, 3}),
    "fewer than Q left": ([carry_round((1, 2, 3), (2, 3))] * 4, 4, {1, 2, 3}),
    "nobody known": ([carry_round((9,))] * 4, 4, {1, 2, 3}),
}


@pytest.mark.parametrize("name", HISTORY)
def test_reducers_by_history(name: str) -> None:
    rounds, applied, expected = HISTORY[name]
    found = reducers(members(1, 2, 3), Carry(1.0, tuple(rounds)), applied, BEACON, AVERAGE)
    assert set(numbers(found)) == expected


def test_who_is_not_willing_never_reduces() -> None:
    people = (*members(1, 2), *members(3, reduces=False))
    rounds = (carry_round((3,), (1, 2)),) * 4  # not even when the rule leaves nobody
    assert set(numbers(reducers(people, Carry(1.0, rounds), 4, BEACON, AVERAGE))) == {1, 2}
    assert reducers(members(1, 2, reduces=False), NONE, 0, BEACON, AVERAGE) == ()


@settings(max_examples=100)
@given(st.integers(0, 30), st.integers(1, 500), st.integers(1, 256))
def test_slices_cover_every_chunk_once(people: int, chunks: int, most: int) -> None:
    ordered = members(*range(people))
    specs = slices(ordered, chunks, AVERAGE.model_copy(update={"max_reducers": most}))
    n = min(people, chunks, most)
    assert len(specs) == n
    assert [c for s in specs for c in range(s.first_chunk, s.last_chunk)] == (list(range(chunks)) if n else [])
    assert [(s.index, s.reducer) for s in specs] == [(j, ordered[j].public_key) for j in range(n)]
    assert all(s.first_chunk == s.index * chunks // n for s in specs)
    sizes = [s.last_chunk - s.first_chunk for s in specs]
    assert not sizes or 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1
