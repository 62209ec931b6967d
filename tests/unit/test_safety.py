"""The run's one-word verdict, from what the chain shows of rounds, stake and blocks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from samples import RUN, commitment, neuron, roster
from test_standing import FACTS

from distributed_training.chain.base import Head
from distributed_training.errors import StatePruned
from distributed_training.metrics.base import Metrics
from distributed_training.operator.safety import RoundSeen, Watch, round_seen, rounds_seen, verdict
from distributed_training.protocol.rules.membership import encode_slice_map
from distributed_training.protocol.types import Role, Roster

SECTION = RUN.average.model_copy(update={"min_counted": 2, "min_map_share": 0.5, "min_voter_share": 0.5})
MANIFEST = RUN.model_copy(update={"average": SECTION})
TAG = MANIFEST.tag
NOW = 1e9
FINE = FACTS  # its head is of NOW


def at(block: int, index: int, held: str = "111", miners: int = 3, absent: float = 0.0, mapped: bool = True) -> Roster:
    """As of `block` of round `index`: `miners` that committed their work, a validator of stake 10 with a map, and one
    of stake `absent` that says nothing in this run."""
    round_ = MANIFEST.round(index)
    working = [
        neuron(n, commitment=commitment(n, run=TAG, first_round=index), commitment_block=round_.start_block + 1)
        for n in range(miners)
    ]
    said: dict[str, Any] = {"second_round": index, "second": encode_slice_map([bit == "1" for bit in held])}
    words = commitment(9, Role.VALIDATOR, run=TAG, **said if mapped else {"second_round": None, "second": None})
    validator = neuron(9, Role.VALIDATOR, stake=10.0, commitment=words, commitment_block=block - 1)
    other = neuron(8, Role.VALIDATOR, stake=absent, commitment=None)
    return roster(*working, other, validator, block=block)


def seen(index: int, **what: Any) -> RoundSeen:
    round_ = MANIFEST.round(index)
    blocks = (round_.roster_block, round_.commit_block, round_.map_block)
    return round_seen(MANIFEST, round_, *(at(block, index, **what) for block in blocks))


def said(*rounds: RoundSeen, facts: Any = FINE, behind: int = 2, absent: float = 0.0, late_s: float = 5.0) -> Any:
    block = MANIFEST.round(8).map_block
    return verdict(MANIFEST, facts, Head(block, block - behind), at(block, 8, absent=absent), rounds, NOW + late_s)


def test_a_round_is_read_from_three_blocks() -> None:
    good = seen(8)
    assert (good.applied, good.reason, good.candidates, good.counted, good.map_share) == (True, "applied", 3, 3, 1.0)
    few = seen(8, held="100")
    assert (few.applied, few.reason) == (False, "1 of 3 slices count, 2 needed")
    assert seen(8, mapped=False).reason == "too little validator stake committed a slice map"
    assert seen(8, absent=30.0).reason == "the validators of this run hold too little of the permit stake"
    assert (seen(8, miners=0).reason, seen(8, miners=0).candidates) == ("no miner committed its work", 0)


def test_all_is_well_while_rounds_are_applied_and_blocks_come() -> None:
    found = said(seen(7, held="000"), seen(8))
    assert found.word == "all well"
    assert found.reasons == (
        "round 8 was applied, 0 blocks (0 min) ago; miners in it: 3; maps of 100% of its validators' stake; "
        "round 7 was discarded: 0 of 3 slices count, 2 needed",
    )
    assert said().word == "not known"
    begin = verdict(MANIFEST, FINE, Head(1, 0), at(1, 0), (), NOW)
    assert begin.word == "not known" and "its first round is decided in" in begin.reasons[0]


def test_a_discarded_round_or_missing_stake_is_the_runs_trouble() -> None:
    found = said(seen(7), seen(8, mapped=False))
    assert found.word == "the run"
    assert found.reasons[0] == (
        "round 8 was discarded: too little validator stake committed a slice map (miners in it: 3; 0% of its "
        "validators' stake sent slice maps, 50% needed)"
    )
    assert found.reasons[1].startswith("round 7 was applied, ")
    assert said(seen(7, held="000")).reasons[-1] == "none of the last 1 rounds was applied"
    away = said(seen(8), absent=30.0)
    assert away.word == "the run" and "hold less than 50% of the stake" in away.reasons[0]


def test_late_blocks_a_stuck_finality_and_a_runtime_that_nobody_tested_are_the_chains() -> None:
    late = said(seen(8, held="000"), late_s=500.0)
    assert late.word == "the chain" and late.reasons[0] == "the newest block is 500 s old, one is due every 12 s"
    assert "round 8 was discarded" in late.reasons[1]
    assert said(seen(8), behind=30).reasons[0] == "the newest 30 blocks are not final"
    new = replace(FINE, spec_version=999)
    well, broken = said(seen(8), facts=new), said(seen(8, held="000"), facts=new)
    assert (well.word, broken.word) == ("all well", "the chain")
    assert well.reasons[-1] == broken.reasons[0] and "runs runtime 999" in broken.reasons[0]
    assert said(seen(8), facts=replace(FINE, timestamp_s=None), late_s=500.0).word == "all well", "it is not said"


class Shown:
    """A chain's rosters by block; those of round 6 and before are dropped."""

    async def head(self) -> Head:
        return Head(0, 0)

    async def roster(self, block: int) -> Roster:
        index = next(i for i in range(20) if block <= MANIFEST.round(i).map_block)
        if index < 7:
            raise StatePruned("gone")
        return at(block, index)


async def test_rounds_are_those_whose_maps_are_final_and_whose_blocks_are_there() -> None:
    chain, nobody = cast(Any, Shown()), cast(Any, None)
    before, after = MANIFEST.round(9).map_block - 1, MANIFEST.round(9).map_block
    assert [r.index for r in await rounds_seen(chain, MANIFEST, before)] == [7, 8]
    known = await rounds_seen(chain, MANIFEST, after)
    assert [r.index for r in known] == [7, 8, 9]
    assert [r.index for r in await rounds_seen(nobody, MANIFEST, after, known)] == [7, 8, 9], "nothing is asked twice"
    assert await rounds_seen(chain, MANIFEST, 0) == ()


class Tomorrow:
    """A client that cannot make sense of what the chain says of the subnet."""

    async def ask(self, read: Any) -> Any:
        raise KeyError("bits")


class Late(Shown):
    async def head(self) -> Head:
        return Head(5_000_000, 5_000_000)


async def test_a_chain_that_speaks_in_other_types_is_watched_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    told = asyncio.Queue[Any]()

    class Told:
        def write(self, event: Any) -> None:
            told.put_nowait(event["event"])

        def close(self) -> None: ...

    client, chain, metrics = Tomorrow(), Late(), Metrics([Told()], role="miner", uid=3, threads=False)
    watch = asyncio.create_task(Watch(client, chain, MANIFEST, neuron(3), metrics).run(1e-4))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        assert [await told.get() for _ in range(3)] == ["chain"] * 3
    watch.cancel()
    assert caplog.messages == ["no look at the subnet: KeyError: 'bits'"], "of these blocks once"
