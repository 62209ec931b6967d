"""Which run a newcomer follows: what the chain shows of each, and who speaks for it."""

from __future__ import annotations

from typing import Any

from samples import RUN, commitment, key, neuron, roster

from distributed_training.finding.choice import SILENT_BLOCKS, candidates, objection, seen_runs, standing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role

SUBNET_OWNER = "5hot0"


def run_of(number: int, **public: str) -> RunManifest:
    """A run of its own for each number, that uid `number` speaks for unless something else is said."""
    told = {"run_key": key(number).hex(), "checkpoints": "", "pages": ""} | public
    return RunManifest.model_validate(RUN.model_dump() | {"name": f"run-{number}", "public": told})


A, B = run_of(0), run_of(5)


def says(number: int, run: RunManifest, role: Role = Role.OWNER, **more: Any) -> Neuron:
    first = run.digest if role is Role.OWNER else key(number, "first")
    words = commitment(number, role, run=run.tag, first_round=0, first=first)
    return neuron(number, role, commitment=words, **more)


def validates(number: int, run: RunManifest, stake: float = 100.0, **more: Any) -> Neuron:
    return says(number, run, Role.VALIDATOR, stake=stake, **more)


def test_what_the_chain_shows_of_each_run() -> None:
    people = [says(0, A), validates(1, B, 10.0), validates(2, B, 30.0), says(3, B, Role.MINER), says(4, A, Role.MINER)]
    first, second = seen_runs(roster(*people), SUBNET_OWNER)
    assert (first.tag, first.stake, first.validators, first.miners) == (B.tag, 40.0, 2, 1)
    assert [n.uid for n, _ in first.members] == [2, 1, 3] and not first.announced
    assert (second.tag, second.stake, second.by_subnet_owner) == (A.tag, 0.0, True)
    assert [a.digest for a in second.announced] == [A.digest]


def test_who_has_no_permit_or_no_stake_is_no_validator() -> None:
    people = [validates(1, A, may_validate=False), validates(2, A, 0.0), neuron(3, commitment=None)]
    (run,) = seen_runs(roster(*people), SUBNET_OWNER)
    assert (run.stake, run.validators) == (0.0, 0)


def test_most_validator_stake_first_then_the_subnet_owners() -> None:
    people = [says(0, A), says(5, B), validates(1, B)]
    assert [run.tag for run in seen_runs(roster(*people), SUBNET_OWNER)] == [B.tag, A.tag]
    assert [run.tag for run in seen_runs(roster(*people[:2]), SUBNET_OWNER)] == [A.tag, B.tag]


def test_a_run_that_its_validators_have_left_holds_nobody_up() -> None:
    people = [says(0, A), says(5, B), validates(1, B, commitment_block=1000)]
    assert [run.tag for run in seen_runs(roster(*people, block=1000 + SILENT_BLOCKS), SUBNET_OWNER)] == [B.tag, A.tag]
    late = seen_runs(roster(*people, block=1001 + SILENT_BLOCKS), SUBNET_OWNER)
    assert [(run.tag, run.stake) for run in late] == [(A.tag, 0.0), (B.tag, 0.0)]


def test_what_a_stranger_announces_alone_is_joined_only_by_hand() -> None:
    runs = seen_runs(roster(says(5, B)), SUBNET_OWNER)
    assert candidates(runs, None) == ()
    assert candidates(runs, B.sha256[:6]) == candidates(runs, B.sha256) == runs
    assert candidates(runs, A.sha256[:6]) == ()


def test_a_run_that_only_validators_name_is_chosen_by_the_digits_that_are_known() -> None:
    runs = seen_runs(roster(validates(1, B)), SUBNET_OWNER)
    assert candidates(runs, B.sha256) == candidates(runs, B.sha256[:5]) == runs


def test_the_run_key_speaks_whoever_owns_the_subnet() -> None:
    (run,) = seen_runs(roster(people := says(5, B)), SUBNET_OWNER)
    assert objection(run, B, roster(people)) is None


def test_the_subnet_owner_does_not_speak_for_the_run_of_another() -> None:
    stolen = roster(says(0, B))
    (run,) = seen_runs(stolen, SUBNET_OWNER)
    said = objection(run, B, stolen)
    assert said is not None and said.startswith("uid 0 announces it, but its run key") and "no validator" in said
    nameless = run_of(7, run_key="")
    (run,) = seen_runs(roster(says(0, nameless)), SUBNET_OWNER)
    assert "names no run key" in str(objection(run, nameless, roster(says(0, nameless))))


def test_an_owner_that_changes_in_mid_run_hides_nothing() -> None:
    """The run key has gone, or says nothing; the new owner commits garbage, nothing, or another run."""
    garbage = neuron(0, Role.OWNER, commitment=commitment(0, Role.OWNER, run=bytes(8), first=bytes(32)))
    for new_owner in (garbage, neuron(0, commitment=None), says(0, A)):
        for old_owner in ([], [neuron(5, commitment=None)], [says(5, B, Role.MINER)]):
            now = roster(new_owner, *old_owner, validates(1, B))
            first = candidates(seen_runs(now, SUBNET_OWNER), None)[0]
            assert first.tag == B.tag and objection(first, B, now) is None


def test_a_run_whose_key_announces_another_is_not_followed() -> None:
    now = roster(says(5, A), validates(1, B))
    run = next(run for run in seen_runs(now, SUBNET_OWNER) if run.tag == B.tag)
    assert objection(run, B, now) == f"its run key, uid 5, announces run {A.sha256[:16]} instead"


def test_a_digest_that_does_not_fit_its_tag_announces_nothing() -> None:
    wrong = neuron(0, Role.OWNER, commitment=commitment(0, Role.OWNER, run=B.tag, first=A.digest))
    assert not any(run.announced for run in seen_runs(roster(wrong), SUBNET_OWNER))


def test_what_the_chain_says_of_a_manifest_that_was_given() -> None:
    assert standing(B, roster(says(5, B))) is None and standing(B, roster(validates(1, B))) is None
    assert "announces or validates it yet" in str(standing(B, roster(says(5, B, Role.MINER))))
    assert "announces or validates it yet" in str(standing(B, roster(says(0, A))))
