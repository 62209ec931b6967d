"""Training ahead: it saves the wait from the beacon to the round's start, a wrong guess costs what it had done, and
neither changes what anybody computes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from subnet import OVERRIDES, TRIES, Node, Subnet, disturbed, finished, make_subnet, running, settled

from distributed_training.chain.base import Chain, Head
from distributed_training.engine import Engine
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import Trainer, Worker, WorkResult, WorkTask

pytestmark = pytest.mark.alone

STEP_BLOCKS = 0.7  # how long a step of the slow worker takes
REORGANISED = 1  # the round whose beacon block is another one until it is final


class ReorganisedChain:
    """A chain whose head is reorganised: some blocks have another hash until they are final."""

    def __init__(self, chain: Chain, blocks: set[int]) -> None:
        self._chain, self._blocks, self._finalized = chain, blocks, 0

    async def head(self) -> Head:
        head = await self._chain.head()
        self._finalized = head.finalized
        return head

    async def block_hash(self, number: int) -> bytes:
        found = await self._chain.block_hash(number)
        return bytes(32) if number in self._blocks and self._finalized < number else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)


class SlowWorker:
    """The honest one on a machine whose steps take `step_s`, however busy this one is."""

    def __init__(self, worker: Worker, step_s: float) -> None:
        self._worker, self._step_s = worker, step_s

    def work(self, task: WorkTask) -> WorkResult:
        due = time.monotonic()

        def on_step(record: StepRecord, seconds: float) -> None:
            nonlocal due
            due += self._step_s
            time.sleep(max(0.0, due - time.monotonic()))
            task.on_step(record, seconds)

        return self._worker.work(replace(task, on_step=on_step))


def block_s(subnet: Subnet) -> float:
    with closing(sqlite3.connect(subnet.chain_file)) as db:
        return json.loads(db.execute("SELECT value FROM meta WHERE name = 'block_s'").fetchone()[0])


def reorganised(subnet: Subnet) -> Any:
    return lambda chain: ReorganisedChain(chain, {subnet.manifest.round(REORGANISED).roster_block})


async def test_roots_do_not_depend_on_training_ahead_nor_on_a_wrong_guess(
    tmp_path: Path, finished_subnet: Subnet
) -> None:
    for one in range(TRIES):
        subnet = make_subnet(tmp_path / str(one))  # as the finished one, which waited for every round
        each = {"miner-1": {"wrap_chain": reorganised(subnet)}}
        async with running(subnet, each=each, rounds=2, ahead=True):
            await finished(subnet)
        if not disturbed(subnet):
            break
    expected = finished_subnet.nodes["owner"].rounds()
    for node in subnet.nodes.values():
        for index, event in node.rounds().items():
            assert event["state_root"] == expected[index]["state_root"], node.name
            assert event["included"] == expected[index]["included"]
    (wrong,) = subnet.nodes["miner-1"].all("ahead")
    assert wrong["round"] == REORGANISED
    assert not subnet.nodes["miner-0"].all("ahead")


async def test_who_trains_ahead_does_more_and_loses_little_by_a_wrong_guess(tmp_path: Path) -> None:
    for one in range(TRIES):
        subnet = await three_ways_to_wait(tmp_path / str(one))
        rounds = {node.name: node.rounds() for node in subnet.miners()}
        if all(
            event["applied"] and len(event["included"]) == 3 for found in rounds.values() for event in found.values()
        ):
            break  # else the machine stood still, and the miners did not have the same time
    else:
        raise AssertionError(rounds)
    ahead, waiting, wrong = (steps(subnet.nodes[f"miner-{i}"]) for i in range(3))
    lost = subnet.nodes["miner-2"].all("ahead")[0]["steps_lost"]
    print(f"steps a round: ahead {ahead}, waiting {waiting}, wrong guess in round 1 {wrong} ({lost} lost)")
    assert ahead[1] > waiting[1]
    assert waiting[1] <= wrong[1] < ahead[1], "it began again when the block was final, two blocks before the round"
    assert wrong[0] > waiting[0]
    assert 1 <= lost <= subnet.manifest.timing.finality / STEP_BLOCKS + 1


async def three_ways_to_wait(root: Path) -> Subnet:
    """Two rounds of a miner that trains ahead, of one that waits, and of one that trains ahead by a wrong guess."""
    timing = {"roster_lead": 4, "first_block": 6, "map": 18}
    overrides = {"timing": {**OVERRIDES["timing"], **timing}, "inner": {"nominal_steps": 3, "max_steps": 20}}
    subnet = make_subnet(root, miners=3, validators=1, owner=False, overrides=overrides)
    step_s = STEP_BLOCKS * block_s(subnet)

    def slow(engine: Engine, manifest: RunManifest) -> Worker:
        return SlowWorker(Trainer(engine.loop, engine.source, engine.tokenizer, manifest), step_s)

    each: dict[str, dict[str, Any]] = {f"miner-{i}": {"make_worker": slow, "steps": 20} for i in range(3)}
    each["miner-0"] |= {"ahead": True}
    each["miner-2"] |= {"ahead": True, "wrap_chain": reorganised(subnet)}
    async with running(subnet, each=each):
        await settled(subnet, 1)
    return subnet


def steps(node: Node) -> list[int]:
    return [event["steps"] for event in node.all("train")]


async def test_nothing_is_left_behind_when_a_node_is_stopped_while_it_trains_ahead(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=2, validators=1, owner=False)

    def slow(engine: Engine, manifest: RunManifest) -> Worker:
        return SlowWorker(Trainer(engine.loop, engine.source, engine.tokenizer, manifest), 0.05)

    async with running(subnet, ahead=True, make_worker=slow, steps=8):
        node = subnet.nodes["miner-0"]
        async with asyncio.timeout(30):
            while "training" not in {task.get_name() for task in asyncio.all_tasks()}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for node in list(subnet.nodes.values()):
            await node.stop()
        assert "training" not in {task.get_name() for task in asyncio.all_tasks()}
