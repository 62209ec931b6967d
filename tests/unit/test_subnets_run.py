"""Is a checkpoint of the subnet's run? By its owner's word, or by where the stake of its validators is."""

from __future__ import annotations

from samples import RUN, commitment, key, neuron, roster

from distributed_training.operator.verify import Verdict, subnets_run
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role

OURS: RunManifest = RUN.model_copy(update={"public": RUN.public.model_copy(update={"run_key": key(1).hex()})})


def owner(number: int, run: RunManifest) -> Neuron:
    said = commitment(number, Role.OWNER, run=run.tag, first_round=0, first=run.digest)
    return neuron(number, Role.OWNER, commitment=said)


def validator(number: int, run: RunManifest, stake: float) -> Neuron:
    return neuron(number, Role.VALIDATOR, stake=stake, commitment=commitment(number, Role.VALIDATOR, run=run.tag))


def test_an_owner_that_changed_in_mid_run_does_not_disown_it() -> None:
    speaks, usurps = owner(1, OURS), owner(2, RUN)
    members = validator(3, OURS, 10.0), validator(4, RUN, 9.0)
    assert subnets_run(roster(speaks, usurps, *members), speaks.hotkey, OURS).verdict is Verdict.PROVEN
    assert subnets_run(roster(speaks, usurps, *members), usurps.hotkey, OURS).verdict is Verdict.PROVEN
    assert subnets_run(roster(usurps, *members), usurps.hotkey, OURS).verdict is Verdict.PROVEN


def test_a_run_that_neither_owner_nor_most_stake_is_in_is_not_the_subnets() -> None:
    speaks, owns = owner(1, OURS), owner(2, RUN)
    few = validator(3, OURS, 9.0), validator(4, RUN, 10.0)
    assert subnets_run(roster(speaks, owns, *few), owns.hotkey, OURS).verdict is Verdict.FAILED
    assert subnets_run(roster(speaks), owns.hotkey, OURS).verdict is Verdict.FAILED
