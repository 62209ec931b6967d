from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BEACON, ROUND, RUN, carry_round, commitment, key, neuron, roster, with_neuron

from distributed_training.rules.membership import (
    candidates,
    counted_slices,
    decode_slice_map,
    encode_slice_map,
    majority_root,
    output_hashes,
    reducers,
    slice_maps,
    slices,
)
from distributed_training.types import Candidate, Carry, Neuron, Role, Roster

AVERAGE = RUN.average.model_copy(update={"min_counted": 2})
NONE = Carry(1.0, ())


def numbers(found: tuple[Candidate, ...]) -> list[int]:
    return [c.uid for c in found]


def members(*who: int, reduces: bool = True) -> tuple[Candidate, ...]:
    return candidates(
        ROUND,
        roster(*(neuron(i) for i in who)),
        roster(*(neuron(i, commitment=commitment(i, reduces=reduces)) for i in who)),
    )


# --- candidates ----------------------------------------------------------------------------------------


def test_candidates_come_in_the_order_of_their_public_keys() -> None:
    people = [neuron(3), neuron(1), neuron(2)]
    found = candidates(ROUND, roster(*people), roster(*people[::-1]))
    assert numbers(found) == [1, 2, 3]
    first = found[0]
    assert (first.public_key, first.peer_key, first.record_hash) == (key(1), key(1, "peer"), key(1, "first"))
    assert (first.address, first.registered_block, first.reduces) == (("127.0.0.1", 9001), 1, True)


def test_identity_and_address_are_those_of_the_roster() -> None:
    later = neuron(1, uid=9, address=("10.0.0.1", 1), commitment=commitment(1, reduces=False))
    (found,) = candidates(ROUND, roster(neuron(1)), roster(later))
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
    found = candidates(ROUND, roster(neuron(1)), roster(neuron(1, commitment_block=block)))
    assert numbers(found) == [1] * counts


LATER: dict[str, dict[str, Any]] = {
    "registered again": {"registered_block": 2},
    "another role": {"commitment": commitment(1, Role.VALIDATOR)},
    "another peer key": {"commitment": commitment(1, peer_key=key(9, "peer"))},
    "an older round": {"commitment": commitment(1, first_round=2)},
    "no work hash": {"commitment": commitment(1, first=None, first_round=None)},
    "malformed": {"commitment": None},
    "another hotkey": {"public_key": key(7)},
}


@pytest.mark.parametrize("change", LATER)
def test_who_is_no_candidate(change: str) -> None:
    at_commit = roster(replace(neuron(1), **LATER[change]), neuron(2))
    assert numbers(candidates(ROUND, roster(neuron(1), neuron(2)), at_commit)) == [2]


def test_nobody_joins_a_round_that_has_begun() -> None:
    both = roster(neuron(1), neuron(2))
    assert numbers(candidates(ROUND, roster(neuron(1)), both)) == [1]
    assert numbers(candidates(ROUND, roster(neuron(1, commitment=None), neuron(2)), both)) == [2]
    assert numbers(candidates(ROUND, both, roster(neuron(2)))) == [2]  # left the subnet meanwhile


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


# --- maps and counted slices ---------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.lists(st.booleans(), max_size=256))
def test_slice_map_round_trip(held: list[bool]) -> None:
    data = encode_slice_map(held)
    assert len(data) == 32 and decode_slice_map(data, len(held)) == tuple(held)
    assert all(bool(data[j // 8] >> (j % 8) & 1) == bit for j, bit in enumerate(held))


def test_a_slice_map_has_256_bits() -> None:
    with pytest.raises(OverflowError):
        encode_slice_map([True] * 257)


def validators(*stakes: float) -> Roster:
    return roster(*(neuron(i, Role.VALIDATOR, stake=s) for i, s in enumerate(stakes)))


def count(stakes: list[float], maps: dict[int, str], outputs: str = "111", **average: Any) -> tuple[int, ...]:
    """Counted slices; maps and outputs as strings of bits, by number of the validator."""
    return counted_slices(
        len(outputs),
        {j: key(j, "output") for j, bit in enumerate(outputs) if bit == "1"},
        {key(i): [bit == "1" for bit in text] for i, text in maps.items()},
        validators(*stakes),
        AVERAGE.model_copy(update=average),
    ).slices


def test_more_than_half_of_the_committing_stake_decides() -> None:
    assert count([3, 2, 2], {0: "100", 1: "111", 2: "111"}) == (0, 1, 2)
    assert count([3, 2, 2], {0: "110", 1: "011", 2: "111"}) == (0, 1, 2)
    assert count([5, 2, 2], {0: "110", 1: "111", 2: "111"}) == (0, 1)  # one with most of the stake
    assert count([5, 2, 2], {1: "011", 2: "011"}) == (1, 2)  # who commits no map is not asked
    assert count([2, 2], {0: "111", 1: "110"}) == (0, 1)  # half is not more than half


def test_a_slice_without_an_output_on_chain_does_not_count() -> None:
    assert count([1], {0: "111"}, outputs="101") == (0, 2)


def test_fewer_than_q_slices_discard_the_round() -> None:
    assert count([1], {0: "110"}) == (0, 1)
    assert count([1], {0: "110"}, min_counted=3) == ()
    assert count([1], {0: "100"}) == ()
    assert count([1], {0: "100"}, min_counted=1) == (0,)
    assert count([1], {0: ""}, outputs="") == ()


def test_too_little_stake_discards_the_round() -> None:
    assert count([3, 7], {0: "111"}, min_map_share=0.3) == (0, 1, 2)
    assert count([3, 7], {0: "111"}, min_map_share=0.31) == ()
    assert count([3, 7], {}) == ()
    assert count([0, 0], {0: "111", 1: "111"}) == ()


def test_reasons_and_holders_are_told() -> None:
    outputs = {0: key(0), 1: key(1)}
    maps = {key(0): (True, True), key(1): (True, False), key(2): (True, True)}
    counted = counted_slices(2, outputs, maps, validators(2, 1, 1), AVERAGE)
    assert counted.reason == "applied"
    assert counted.holders == {0: (key(0), key(1), key(2)), 1: (key(0), key(2))}
    none = counted_slices(2, outputs, {}, validators(2), AVERAGE)
    assert (none.slices, none.holders) == ((), {}) and "stake" in none.reason
    few = counted_slices(2, {0: key(0)}, maps, validators(2, 1, 1), AVERAGE)
    assert (few.slices, few.holders) == ((), {}) and few.reason == "1 of 2 slices count, 2 needed"


@settings(max_examples=100)
@given(st.data())
def test_counting_does_not_depend_on_the_order_of_maps(data: st.DataObject) -> None:
    stakes = data.draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=6))
    texts = {i: data.draw(st.text("01", min_size=3, max_size=3)) for i in range(len(stakes))}
    mixed = dict(data.draw(st.permutations(list(texts.items()))))
    assert count(stakes, texts, min_counted=1) == count(stakes, mixed, min_counted=1)


def with_map(number: int, bits: list[bool], **more: Any) -> Neuron:
    said = commitment(number, Role.VALIDATOR, second=encode_slice_map(bits))
    return neuron(number, Role.VALIDATOR, **({"commitment": said} | more))


def test_maps_are_those_of_permit_holders_of_the_roster() -> None:
    before = roster(neuron(0, Role.VALIDATOR), neuron(1, Role.VALIDATOR, may_validate=False), neuron(2))
    now = roster(*(with_map(i, [True, False]) for i in range(4)))
    assert slice_maps(3, 2, before, now) == {key(0): (True, False)}


@pytest.mark.parametrize(
    "change",
    [
        {"registered_block": 2},
        {"commitment": None},
        {"commitment": commitment(0)},
        {"commitment": commitment(0, Role.OWNER)},
        {"commitment": commitment(0, Role.VALIDATOR, second_round=2)},
        {"commitment": commitment(0, Role.VALIDATOR, second=None, second_round=None)},
        {"public_key": key(5)},
    ],
)
def test_maps_that_are_not_read(change: dict[str, Any]) -> None:
    before = roster(neuron(0, Role.VALIDATOR), neuron(1, Role.VALIDATOR))
    now = with_neuron(roster(with_map(0, [True]), with_map(1, [True])), 0, **change)
    assert slice_maps(3, 1, before, now) == {key(1): (True,)}


def test_output_hashes_are_those_of_the_assigned_reducers() -> None:
    people = roster(neuron(0), neuron(1), neuron(2))
    specs = slices(candidates(ROUND, people, people)[:2], 10, AVERAGE)
    assert output_hashes(3, specs, people, people) == {0: key(0, "second"), 1: key(1, "second")}


@pytest.mark.parametrize(
    "change",
    [
        {"registered_block": 2},
        {"commitment": None},
        {"commitment": commitment(0, Role.VALIDATOR)},
        {"commitment": commitment(0, second_round=2)},
        {"commitment": commitment(0, second=None, second_round=None)},
        {"public_key": key(5)},
    ],
)
def test_output_hashes_that_are_not_read(change: dict[str, Any]) -> None:
    people = roster(neuron(0), neuron(1))
    specs = slices(candidates(ROUND, people, people), 10, AVERAGE)
    assert output_hashes(3, specs, people, with_neuron(people, 0, **change)) == {1: key(1, "second")}
    assert output_hashes(3, specs, roster(neuron(1)), people) == {1: key(1, "second")}


# --- state roots -----------------------------------------------------------------------------------------


def said_root(number: int, root: int, stake: float, **more: Any) -> Neuron:
    said = commitment(number, Role.VALIDATOR, first=key(root, "root"), **more)
    return neuron(number, Role.VALIDATOR, stake=stake, commitment=said)


def root_of(*people: Neuron) -> bytes | None:
    return majority_root(3, roster(*people), roster(*people))


def test_the_majority_root_has_more_than_half_of_the_committing_stake() -> None:
    assert root_of(said_root(0, 1, 3), said_root(1, 2, 2), said_root(2, 2, 2)) == key(2, "root")
    assert root_of(said_root(0, 1, 5), said_root(1, 2, 2), said_root(2, 2, 2)) == key(1, "root")
    assert root_of(said_root(0, 1, 2), said_root(1, 2, 2)) is None  # a tie
    assert root_of(said_root(0, 1, 4), said_root(1, 2, 3), said_root(2, 3, 3)) is None  # only the largest part
    assert root_of(said_root(0, 1, 0.0)) is None
    assert root_of() is None


def test_roots_of_others_are_not_heard() -> None:
    lone = said_root(0, 1, 1)
    assert root_of(lone, replace(said_root(1, 2, 9), may_validate=False)) == key(1, "root")
    assert root_of(lone, said_root(1, 2, 9, first_round=2)) == key(1, "root")
    assert root_of(lone, neuron(1, stake=9.0, may_validate=True)) == key(1, "root")
    assert root_of(lone, replace(said_root(1, 2, 9), commitment=None)) == key(1, "root")
    assert majority_root(3, roster(lone), roster(lone, said_root(1, 2, 9))) == key(1, "root")
    assert majority_root(3, roster(lone, said_root(1, 2, 9)), roster(lone)) == key(1, "root")
