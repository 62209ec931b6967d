"""A validator without a permit knows why, what it waits for, and when it has one."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from samples import RUN, commitment, key, neuron, roster

from distributed_training.protocol.types import Role
from distributed_training.roles.auditing.permit import PermitWatch, permit_lacks, vote_lacks
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import make_world

RICH = neuron(1, Role.VALIDATOR, stake=1000.0)
POOR = neuron(2, Role.VALIDATOR, stake=3.5, may_validate=False)


def test_what_is_missing_is_said_with_rank_and_the_least_stake_that_has_a_permit() -> None:
    assert permit_lacks(roster(RICH), RICH) is None
    said = permit_lacks(roster(RICH, POOR, neuron(3)), POOR)
    assert said is not None and "\n" not in said
    for part in ("uid 2 has no permit", "this one has 3.5 (rank 2 of 3)", "the least stake that has one is 1,000.0"):
        assert part in said
    assert "nobody has one" in (permit_lacks(roster(POOR), POOR) or "")


def test_a_permit_that_is_lost_or_gained_is_said_and_its_lack_in_every_round(caplog: pytest.LogCaptureFixture) -> None:
    watch, with_permit = PermitWatch(RUN), neuron(2, Role.VALIDATOR, stake=3.5)
    with caplog.at_level(logging.INFO, logger="distributed_training"):
        for index, me in enumerate((POOR, POOR, with_permit, with_permit, POOR)):
            watch.saw(index, roster(RICH, me), key(2))
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("round 0: uid 2 has no permit to validate")
    assert said[1] == "round 1: followed only: our vote does not count yet"
    assert said[2] == "round 2: this validator's vote counts now"
    assert said[3].startswith("round 4: the vote is lost: uid 2 has no permit")
    assert len(said) == 4


def test_a_validator_with_a_permit_is_told_why_its_vote_does_not_count() -> None:
    silent = neuron(2, Role.VALIDATOR, commitment=commitment(2, Role.VALIDATOR, run=bytes(8)))
    said = vote_lacks(RUN, roster(RICH, silent), silent)
    assert said == "uid 2 had said nothing of this run for 4 rounds, so its vote does not count"
    strict = RUN.model_copy(update={"average": RUN.average.model_copy(update={"min_voter_share": 0.05})})
    me = neuron(1, Role.VALIDATOR, stake=40.0, commitment=commitment(1, Role.VALIDATOR, run=strict.tag))
    assert vote_lacks(strict, roster(me), me) is None
    said = vote_lacks(strict, roster(me, neuron(3, stake=960.0, may_validate=True)), me)
    assert said == "the validators of this run hold less than 0.05 of all permit stake, so nobody's vote counts"


def test_a_validator_without_stake_is_told_before_its_first_round_and_in_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(SimOptions(miners=2, rounds=2, validators=1), tmp_path)

    async def main() -> None:
        world.recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        world.register("validator-1")
        nodes = [SimNode(world, name) for name in (*world.options.genesis_names(), "validator-1")]
        for node in nodes:
            node.start()
        await asyncio.sleep(world.block_time(world.manifest.round(1).start_block + 3))
        for node in nodes:
            await node.kill()

    with caplog.at_level(logging.INFO, logger="distributed_training"):
        run(main())
    said = [r.getMessage() for r in caplog.records if "permit" in r.getMessage() or "vote" in r.getMessage()]
    assert "no permit to validate" in said[0] and said[0].endswith("it goes on as soon as it has one")
    assert any(line.startswith("round 0: uid 4 has no permit") for line in said)
    assert "round 1: followed only: our vote does not count yet" in said
    assert set(world.recorder.settled[0]) == {*world.options.genesis_names(), "validator-1"}
