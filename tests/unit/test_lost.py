"""Counted slices that nobody can give: who must say so on chain, and when it is too late to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import RUN, commitment, neuron, roster

from distributed_training.protocol.rules.lost import Later, Settling, lost_slices, without
from distributed_training.protocol.rules.membership import Counted, encode_slice_map
from distributed_training.protocol.types import Neuron, Role

FORMER, NEXT = RUN.round(3), RUN.round(4)
AVERAGE = RUN.average.model_copy(update={"min_map_share": 0.5, "min_counted": 2})
COUNTED = Counted((0, 2, 3), "applied", dict.fromkeys((0, 2, 3), ()))
SETTLING = Settling(FORMER, 4, COUNTED)


def says(number: int, stake: float, index: int, held: str, block: int) -> Neuron:
    bits = encode_slice_map([bit == "1" for bit in held])
    said = commitment(number, Role.VALIDATOR, run=RUN.tag, first_round=index, second_round=index, second=bits)
    return neuron(number, Role.VALIDATOR, stake=stake, commitment=said, commitment_block=block)


def lacks(number: int, stake: float, held: str = "1101", block: int = FORMER.map_block + 1) -> Neuron:
    return says(number, stake, FORMER.index, held, block)


def went_on(number: int, stake: float) -> Neuron:
    return says(number, stake, NEXT.index, "0000", NEXT.map_block)


def judged(*people: Neuron, share: float = 0.5) -> tuple[int, ...] | None:
    average = AVERAGE.model_copy(update={"min_map_share": share})
    return lost_slices(SETTLING, Later(NEXT, people, roster(*people, block=NEXT.map_block)), average)


def silent(number: int, stake: float) -> Neuron:
    return replace(lacks(number, stake), commitment=None)


@pytest.mark.parametrize(
    ("people", "share", "lost"),
    [
        ((lacks(0, 51), silent(1, 49)), 0.5, (2,)),
        ((lacks(0, 51, "0000"), went_on(1, 49)), 0.5, (0, 2, 3)),
        ((lacks(0, 30, "0101"), lacks(1, 30), silent(2, 40)), 0.5, (2,)),
        ((lacks(0, 50), went_on(1, 50)), 0.5, ()),  # as many have gone on
        ((lacks(0, 40), silent(1, 60)), 0.5, None),
        ((lacks(0, 40), silent(1, 60)), 0.3, (2,)),
        ((lacks(0, 40), went_on(1, 45), silent(2, 15)), 0.3, None),
        ((lacks(0, 40), went_on(1, 50), silent(2, 10)), 0.3, ()),
        ((lacks(0, 60, "1111"), went_on(1, 40)), 0.5, None),  # it has them all by now
        ((lacks(0, 60, block=FORMER.map_block), silent(1, 40)), 0.5, None),  # its map of then, included late or not
        ((), 0.5, None),
    ],
)
def test_what_is_lost(people: tuple[Neuron, ...], share: float, lost: tuple[int, ...] | None) -> None:
    assert judged(*people, share=share) == lost


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("lgs")), max_size=6))
def test_less_than_half_of_the_stake_never_takes_a_slice_from_the_others(drawn: list[tuple[int, str]]) -> None:
    make = {"l": lacks, "g": went_on, "s": silent}
    lost = judged(*(make[kind](i, stake) for i, (stake, kind) in enumerate(drawn)))
    lacking = sum(stake for stake, kind in drawn if kind == "l")
    assert not lost or 2 * lacking >= sum(stake for stake, _ in drawn) > 0


def test_a_round_that_loses_too_many_slices_is_discarded() -> None:
    assert without(COUNTED, (2,), AVERAGE).slices == (0, 3)
    left = without(COUNTED, (0, 2), AVERAGE)
    assert (left.slices, left.reason) == ((), "slices [0, 2] are lost and 1 count, 2 needed")
