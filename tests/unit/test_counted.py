from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ROUND, RUN, commitment, key, neuron, roster, with_neuron

from distributed_training.protocol.rules.membership import (
    backed_by,
    backup_of,
    candidates,
    counted_slices,
    decode_slice_map,
    encode_slice_map,
    majority_root,
    output_claims,
    output_hashes,
    slice_maps,
)
from distributed_training.protocol.rules.slices import slices
from distributed_training.protocol.types import Carry, Neuron, Role

AVERAGE = RUN.average.model_copy(update={"min_counted": 2})
NONE = Carry(1.0, ())


@settings(max_examples=100)
@given(st.lists(st.booleans(), max_size=256))
def test_slice_map_round_trip(held: list[bool]) -> None:
    data = encode_slice_map(held)
    assert len(data) == 32 and decode_slice_map(data, len(held)) == tuple(held)
    assert all(bool(data[j // 8] >> (j % 8) & 1) == bit for j, bit in enumerate(held))


@given(st.lists(st.booleans(), max_size=20), st.binary(min_size=32, max_size=32))
def test_bits_beyond_the_slices_of_a_round_are_ignored(held: list[bool], noise: bytes) -> None:
    low = int.from_bytes(encode_slice_map(held), "little")
    high = int.from_bytes(noise, "little") >> len(held) << len(held)
    assert decode_slice_map((low | high).to_bytes(32, "little"), len(held)) == tuple(held)


def test_a_slice_map_has_256_bits() -> None:
    with pytest.raises(OverflowError):
        encode_slice_map([True] * 257)


def validators(*stakes: float) -> tuple[Neuron, ...]:
    return tuple(neuron(i, Role.VALIDATOR, stake=s) for i, s in enumerate(stakes))


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
    assert (none.slices, none.holders) == ((), {}) and none.reason == "too little validator stake committed a slice map"
    nobody = counted_slices(2, outputs, {}, (), AVERAGE)
    assert nobody.reason == "the validators of this run hold too little of the permit stake"
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


def test_maps_are_those_of_the_voters() -> None:
    now = roster(*(with_map(i, [True, False]) for i in range(4)))
    assert slice_maps(ROUND, 2, validators(1), now) == {key(0): (True, False)}


@pytest.mark.parametrize(
    "change",
    [
        {"registered_block": 2},
        {"commitment": None},
        {"commitment": commitment(0)},
        {"commitment": commitment(0, Role.OWNER)},
        {"commitment": commitment(0, Role.VALIDATOR, second_round=2)},
        {"commitment": commitment(0, Role.VALIDATOR, second=None, second_round=None)},
        {"commitment": commitment(0, Role.VALIDATOR, run=bytes(8))},
        {"public_key": key(5)},
    ],
)
def test_maps_that_are_not_read(change: dict[str, Any]) -> None:
    now = with_neuron(roster(with_map(0, [True]), with_map(1, [True])), 0, **change)
    assert slice_maps(ROUND, 1, validators(1, 1), now) == {key(1): (True,)}


def test_output_hashes_are_those_of_the_assigned_reducers() -> None:
    people = roster(neuron(0), neuron(1), neuron(2))
    specs = slices([(c, 1) for c in candidates(ROUND, people, people, RUN)[:2]], 10, AVERAGE)
    assert output_hashes(ROUND, specs, people, people) == {0: key(0, "second"), 1: key(1, "second")}


@pytest.mark.parametrize(
    "change",
    [
        {"registered_block": 2},
        {"commitment": None},
        {"commitment": commitment(0, Role.VALIDATOR)},
        {"commitment": commitment(0, second_round=2)},
        {"commitment": commitment(0, second=None, second_round=None)},
        {"commitment": commitment(0, run=bytes(8))},
        {"public_key": key(5)},
    ],
)
def test_output_hashes_that_are_not_read(change: dict[str, Any]) -> None:
    people = roster(neuron(0), neuron(1))
    specs = slices([(c, 1) for c in candidates(ROUND, people, people, RUN)], 10, AVERAGE)
    assert output_hashes(ROUND, specs, people, with_neuron(people, 0, **change)) == {1: key(1, "second")}
    assert output_hashes(ROUND, specs, roster(neuron(1)), people) == {1: key(1, "second")}


def claimed(*absent: int, count: int = 3) -> dict[int, tuple[bytes, bytes, bool]]:
    """Slice -> (who signs, hash on chain, by backup?), while reducers of `absent` slices have no output on chain."""
    people = roster(*(neuron(i) for i in range(count)))
    specs = slices([(c, 1) for c in candidates(ROUND, people, people, RUN)], 10, AVERAGE)
    now = people
    for j in absent:
        now = with_neuron(now, j, commitment=commitment(j, second=None, second_round=None))
    found = output_claims(ROUND, specs, people, now)
    assert list(found) == sorted(found)
    return {j: (c.reducer, c.record_hash, c.by_backup) for j, c in found.items()}


def test_the_next_reducer_stands_in_for_one_without_an_output() -> None:
    own = {j: (key(j), key(j, "second"), False) for j in range(3)}
    assert claimed() == own
    assert claimed(0) == own | {0: (key(1), key(1, "second"), True)}
    assert claimed(2) == own | {2: (key(0), key(0, "second"), True)}, "the first stands in for the last"
    assert claimed(0, 1) == {1: (key(2), key(2, "second"), True), 2: own[2]}, "a backup that failed too"
    assert claimed(0, 1, 2) == {}
    assert claimed(1, count=2) == {0: own[0], 1: (key(0), key(0, "second"), True)}
    assert claimed(0, count=1) == {}


def test_who_stands_in_for_whom() -> None:
    people = roster(*(neuron(i) for i in range(3)))
    specs = slices([(c, 1) for c in candidates(ROUND, people, people, RUN)], 10, AVERAGE)
    for spec in specs:
        backup = backup_of(specs, spec.index)
        assert backup is not None and backup.reducer != spec.reducer
        again = backed_by(specs, backup.index)
        assert again == replace(spec, reducer=backup.reducer)
    assert backup_of(specs[:1], 0) is None and backed_by(specs[:1], 0) is None


# --- state roots -----------------------------------------------------------------------------------------


def said_root(number: int, root: int, stake: float, **more: Any) -> Neuron:
    said = commitment(number, Role.VALIDATOR, first=key(root, "root"), **more)
    return neuron(number, Role.VALIDATOR, stake=stake, commitment=said)


def root_of(*people: Neuron) -> bytes | None:
    return majority_root(ROUND, people, roster(*people))


def test_the_majority_root_has_more_than_half_of_all_voters_stake() -> None:
    assert root_of(said_root(0, 1, 3), said_root(1, 2, 2), said_root(2, 2, 2)) == key(2, "root")
    assert root_of(said_root(0, 1, 5), said_root(1, 2, 2), said_root(2, 2, 2)) == key(1, "root")
    assert root_of(said_root(0, 1, 2), said_root(1, 2, 2)) is None  # a tie
    assert root_of(said_root(0, 1, 4), said_root(1, 2, 3), said_root(2, 3, 3)) is None  # only the largest part
    assert root_of(said_root(0, 1, 0.0)) is None
    assert root_of() is None


def test_a_grain_of_stake_does_not_speak_for_validators_that_are_late() -> None:
    late = said_root(0, 1, 1000, first_round=2)
    assert root_of(late, said_root(1, 2, 0.001)) is None
    assert root_of(late, said_root(1, 2, 1001)) == key(2, "root")


def test_roots_of_others_are_not_heard() -> None:
    lone, other = said_root(0, 1, 10), said_root(1, 2, 9)
    assert root_of(lone, said_root(1, 2, 9, first_round=2)) == key(1, "root")
    assert root_of(lone, neuron(1, stake=9.0)) == key(1, "root")
    assert root_of(lone, replace(other, commitment=None)) == key(1, "root")
    assert majority_root(ROUND, (lone,), roster(lone, said_root(1, 2, 99))) == key(1, "root")
    assert majority_root(ROUND, (lone, other), roster(lone)) == key(1, "root")
    recycled = replace(said_root(1, 2, 99), registered_block=lone.registered_block + 7)
    assert majority_root(ROUND, (lone, said_root(1, 2, 99)), roster(lone, recycled)) is None
    assert root_of(lone, said_root(1, 2, 99, run=bytes(8))) is None, "of another run"
