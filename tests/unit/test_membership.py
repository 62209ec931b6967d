from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from samples import ROUND, RUN, commitment, key, neuron, roster

from distributed_training.protocol.rules.membership import candidates
from distributed_training.protocol.sections import AccessSection
from distributed_training.protocol.types import Candidate, Role


def numbers(found: tuple[Candidate, ...]) -> list[int]:
    return [c.uid for c in found]


def members(*who: int, reduces: bool = True) -> tuple[Candidate, ...]:
    return candidates(
        ROUND,
        roster(*(neuron(i) for i in who)),
        roster(*(neuron(i, commitment=commitment(i, reduces=reduces)) for i in who)),
        RUN.model_copy(update={"max_uids": 64}),
    )


# --- candidates ----------------------------------------------------------------------------------------


def test_candidates_come_in_the_order_of_their_public_keys() -> None:
    people = [neuron(3), neuron(1), neuron(2)]
    found = candidates(ROUND, roster(*people), roster(*people[::-1]), RUN)
    assert numbers(found) == [1, 2, 3]
    first = found[0]
    assert (first.public_key, first.peer_key, first.record_hash) == (key(1), key(1, "peer"), key(1, "first"))
    assert (first.address, first.registered_block, first.reduces) == (("127.0.0.1", 9001), 1, True)


def test_identity_and_address_are_those_of_the_roster() -> None:
    later = neuron(1, uid=9, address=("10.0.0.1", 1), commitment=commitment(1, reduces=False))
    (found,) = candidates(ROUND, roster(neuron(1)), roster(later), RUN)
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
    found = candidates(ROUND, roster(neuron(1)), roster(neuron(1, commitment_block=block)), RUN)
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
    assert numbers(candidates(ROUND, roster(neuron(1), neuron(2)), at_commit, RUN)) == [2]


def test_nobody_joins_a_round_that_has_begun() -> None:
    both = roster(neuron(1), neuron(2))
    assert numbers(candidates(ROUND, roster(neuron(1)), both, RUN)) == [1]
    assert numbers(candidates(ROUND, roster(neuron(1, commitment=None), neuron(2)), both, RUN)) == [2]
    assert numbers(candidates(ROUND, both, roster(neuron(2)), RUN)) == [2]  # left the subnet meanwhile
    elsewhere = neuron(1, commitment=commitment(1, run=bytes(8)))
    assert numbers(candidates(ROUND, roster(elsewhere, neuron(2)), both, RUN)) == [2]  # came from another run meanwhile


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
    listed = RUN.model_copy(update={"access": access})
    assert numbers(candidates(ROUND, people, people, listed)) == found
    bought = roster(*(neuron(i, coldkey=key(3, "coldkey")) for i in (1, 2, 3)))
    assert numbers(candidates(ROUND, people, bought, listed)) == found  # who owned it at s-B decides


def test_a_uid_beyond_those_that_the_manifest_counts_is_no_candidate() -> None:
    people = roster(*(neuron(i) for i in (2, RUN.max_uids - 1, RUN.max_uids)))
    assert numbers(candidates(ROUND, people, people, RUN)) == [2, RUN.max_uids - 1]


def test_a_neuron_is_found_by_its_key_without_a_look_at_the_others() -> None:
    """A round looks up everybody several times for everybody: by a walk over the roster that would be cubic."""
    first, second = neuron(1), neuron(2, public_key=key(1))
    found = roster(first, second, neuron(3))
    assert found.by_public_key(key(1)) is first and found.by_public_key(key(9)) is None
    walked = replace(found)
    object.__setattr__(walked, "neurons", None)
    assert walked.by_public_key(key(3)) == neuron(3)
    assert found == roster(first, second, neuron(3)) and hash(found) == hash(roster(first, second, neuron(3)))
