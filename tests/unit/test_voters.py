"""Whose stake counts: what a real chain puts beside honest validators, drawn by hypothesis."""

from __future__ import annotations

from dataclasses import replace
from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import ROUND, RUN, commitment, key, neuron, roster

from distributed_training.protocol.rules.membership import (
    counted_slices,
    encode_slice_map,
    majority_root,
    slice_maps,
)
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Neuron, Role, Roster

LONG = RUN.timing.length
AT = RUN.round(9).roster_block  # late enough for commitments to be old
AVERAGE = RUN.average.model_copy(update={"min_counted": 1, "min_map_share": 0.5, "min_voter_share": 0.05})
MANIFEST = RUN.model_copy(update={"average": AVERAGE})
TAG = MANIFEST.tag
STAKES = st.floats(0, 1e6, allow_subnormal=False)


def validator(number: int, stake: float, held: bool = True, root: int = 1) -> Neuron:
    """With a map of round 3 that says whether it holds the one slice."""
    said = commitment(number, Role.VALIDATOR, run=TAG, first=key(root, "root"), second=encode_slice_map([held, True]))
    return neuron(number, Role.VALIDATOR, stake=stake, commitment=said, commitment_block=AT - 1)


def bystander(number: int, kind: str, stake: float) -> Neuron:
    """Somebody with a permit who does not validate this run."""
    has = validator(number, stake)
    assert has.commitment is not None
    changes = {
        "miner": {"commitment": commitment(number, run=TAG)},
        "owner": {"commitment": commitment(number, Role.OWNER, run=TAG)},
        "silent": {"commitment": None},
        "gone": {"commitment_block": AT - 4 * LONG},
        "other run": {"commitment": replace(has.commitment, run=bytes(8))},
    }
    return replace(has, **changes[kind])


KINDS = ("miner", "owner", "silent", "gone", "other run")
CROWD = st.lists(st.tuples(STAKES, st.booleans(), st.integers(1, 3)), min_size=1, max_size=5).map(
    lambda drawn: [validator(i, *one) for i, one in enumerate(drawn)]
)
OTHERS = st.lists(st.tuples(st.sampled_from(KINDS), STAKES), max_size=5).map(
    lambda drawn: [bystander(100 + i, *one) for i, one in enumerate(drawn)]
)


def at(people: list[Neuron], block: int = AT) -> Roster:
    return roster(*people, block=block)


def decided(people: list[Neuron], saying: list[Neuron] | None = None) -> tuple[bool, bytes | None]:
    """(does slice 0 count, the majority's root), where `saying` (all of them) are on chain at s+Y."""
    now, round_ = at(people if saying is None else saying), MANIFEST.round(ROUND.index)
    found = voters(MANIFEST, at(people))
    maps = slice_maps(round_, 2, found, now)
    counted = counted_slices(2, {0, 1}, maps, found, AVERAGE)
    return 0 in counted.slices, majority_root(round_, found, now)


def floor_holds(crowd: list[Neuron], others: list[Neuron]) -> bool:
    stake = fsum(n.stake for n in crowd)
    return stake > 0 and stake >= AVERAGE.min_voter_share * fsum(n.stake for n in (*crowd, *others))


@given(CROWD, OTHERS)
def test_permits_of_miners_owners_absent_stakers_and_other_runs_never_change_who_decides(
    crowd: list[Neuron], others: list[Neuron]
) -> None:
    mixed = [*others, *crowd]
    if floor_holds(crowd, others):
        assert voters(MANIFEST, at(mixed)) == tuple(crowd)
        assert decided(mixed) == decided(crowd)
    else:
        assert decided(mixed) == (False, None)


@given(CROWD, OTHERS, st.integers(0, 4), STAKES)
def test_more_stake_never_speaks_against_what_its_holder_says(
    crowd: list[Neuron], others: list[Neuron], place: int, more: float
) -> None:
    place %= len(crowd)
    slice_before, root_before = decided([*crowd, *others])
    richer = [replace(n, stake=n.stake + more) if i == place else n for i, n in enumerate(crowd)]
    slice_after, root_after = decided([*richer, *others])
    said = crowd[place].commitment
    assert said is not None
    if slice_before and said.second == encode_slice_map([True, True]):
        assert slice_after
    if root_before is not None and said.first == root_before:
        assert root_after == root_before


@given(CROWD, OTHERS, st.sets(st.integers(0, 4)))
def test_a_grain_never_decides_whoever_is_away(crowd: list[Neuron], others: list[Neuron], present: set[int]) -> None:
    """Those who say something in a round in which it decides hold their share of the voters' stake, and the voters
    theirs of all permit stake."""
    here = [n for i, n in enumerate(crowd) if i in present]
    counts, root = decided([*crowd, *others], here)
    spoken, all_voters = fsum(n.stake for n in here), fsum(n.stake for n in crowd)
    permits = all_voters + fsum(n.stake for n in others)
    if counts or root is not None:
        assert spoken > 0 and all_voters >= AVERAGE.min_voter_share * permits
    if counts:
        assert spoken >= AVERAGE.min_map_share * all_voters
    if root is not None:
        assert 2 * spoken > all_voters
    gone = [replace(n, commitment_block=AT - 4 * LONG) for n in crowd]  # all of them, for four rounds
    grain = validator(50, 0.04 * permits)
    assert decided([*gone, *others, grain]) == (False, None)


@pytest.mark.parametrize(
    ("index", "written", "counts"),
    [
        (9, 4 * LONG - 1, True),
        (9, 4 * LONG, False),
        (9, 0, True),
        (4, 4 * LONG - 1, True),
        (4, 4 * LONG, False),
        (3, 100 * LONG, True),
        (0, 100 * LONG, True),
    ],
)
def test_a_commitment_counts_for_four_rounds_and_any_one_while_the_run_is_younger(
    index: int, written: int, counts: bool
) -> None:
    """written: blocks before s-B. An announcement, which says nothing of any round, counts too."""
    block = MANIFEST.round(index).roster_block
    empty = commitment(0, Role.VALIDATOR, run=TAG, first=None, first_round=None, second=None, second_round=None)
    one = replace(validator(0, 1.0), commitment=empty, commitment_block=block - written)
    assert bool(voters(MANIFEST, at([one], block))) is counts


def test_a_validator_without_a_permit_has_no_vote_and_weighs_against_nobody() -> None:
    without = replace(validator(1, 1e9), may_validate=False)
    assert voters(MANIFEST, at([validator(0, 1.0), without])) == (validator(0, 1.0),)


def test_permit_stake_that_never_commits_holds_up_neither_roots_nor_rounds() -> None:
    """At the floor of its share, the run's one validator speaks for it beside nineteen times its stake."""
    idle = [bystander(100 + i, kind, 475.0) for i, kind in enumerate(("silent", "miner", "owner", "gone"))]
    one = validator(0, 100.0)
    assert decided([one, *idle]) == (True, key(1, "root"))
    assert decided([replace(one, stake=99.0), *idle]) == (False, None)


LARGE, SMALL = validator(0, 60.0), validator(1, 40.0, held=False, root=2)
MID_ROUND = {
    "stake comes": (LARGE, replace(SMALL, stake=1e6)),
    "stake goes": (replace(LARGE, stake=0.0), SMALL),
    "a permit goes": (replace(LARGE, may_validate=False), SMALL),
    "a permit comes": (LARGE, SMALL, validator(2, 1e6, held=False, root=2)),
    "a uid goes": (SMALL,),
    "a uid is registered again": (replace(LARGE, registered_block=2), SMALL),
}


@pytest.mark.parametrize("change", MID_ROUND)
def test_what_comes_or_goes_in_mid_round_changes_nothing_but_who_still_speaks(change: str) -> None:
    """Between s-B and s+Y: who is not registered any more is away, with the weight it had."""
    gone = change.startswith("a uid")
    expected = (False, None) if gone else (True, key(1, "root"))
    assert decided([LARGE, SMALL], list(MID_ROUND[change])) == expected
