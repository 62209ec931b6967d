"""Nodes in trouble of their own, on the virtual clock: they say so, miss what they must, go on, and blame nobody."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_training.averaging.overflow import Overflow
from distributed_training.averaging.store import RoundStore
from distributed_training.engine import Engine
from distributed_training.errors import ChainUnreachable, DeviceLost, OutOfMemory
from distributed_training.files import write_whole
from distributed_training.protocol.manifest import RunManifest
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import Swarm
from distributed_training.simulation.world import make_world

ROUNDS = 5
Span = tuple[float, float]  # virtual seconds: a block is one of them
NEVER = (0.0, 0.0)


@dataclass
class FailingWorker:
    """Raises the errors planned for a round, one at each attempt, then works."""

    worker: Worker
    planned: dict[int, list[Exception]] = field(default_factory=dict)

    def work(self, task: WorkTask) -> WorkResult:
        if self.planned.get(task.round):
            raise self.planned[task.round].pop(0)
        return self.worker.work(task)


class TroubledNode(SimNode):
    """A node whose way to the chain is cut in `outage`, whose disk is full in `full`, whose worker fails as planned."""

    outage: Span = NEVER
    full: Span = NEVER
    planned: dict[int, list[Exception]] = {}  # noqa: RUF012
    store: RoundStore

    async def _line(self) -> None:
        if self.outage[0] <= asyncio.get_running_loop().time() < self.outage[1]:
            raise ChainUnreachable("no way to the chain")
        await super()._line()

    def _worker(self, engine: Engine, manifest: RunManifest, parts: Parts) -> Worker:
        return FailingWorker(super()._worker(engine, manifest, parts), self.planned)

    def _watch(self, store: RoundStore) -> None:
        super()._watch(store)
        told, self.store = store.overflow.on_trouble, store
        store.overflow = Overflow(write=self._write)
        store.overflow.on_trouble = told

    def _write(self, path: Path, *parts: bytes) -> None:
        if self.full[0] <= asyncio.get_running_loop().time() < self.full[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, *parts)


class Story:
    """A simulated run in which some nodes have trouble, and what everybody said."""

    def __init__(self, root: Path, troubled: dict[str, dict[str, Any]], seed: int = 3) -> None:
        torch.set_num_threads(1)
        out = io.StringIO()
        self.world = make_world(SimOptions(miners=4, rounds=ROUNDS, seed=seed), root, out)
        excused = [Incident("own trouble", *span, (name,)) for name, how in troubled.items() for span in _spans(how)]
        self.swarm = Swarm(self.world, tuple(excused))
        for name, how in troubled.items():
            node = self.swarm.nodes[name] = TroubledNode(self.world, name)
            for attribute, value in how.items():
                setattr(node, attribute, value)
        run(self.swarm.run(lambda row: None))
        self.lines = [json.loads(line) for line in out.getvalue().splitlines()]

    def all(self, name: str, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [e for _, n, e in self.lines if n == name and e["event"] == event and fields.items() <= e.items()]

    def included(self, name: str) -> list[int]:
        return [e["round"] for e in self.all("owner", "round") if self.uid(name) in e["included"]]

    def uid(self, name: str) -> int:
        return self.world.options.genesis_names().index(name)

    def check(self, absent: str = "") -> None:
        """Nobody hangs, nobody differs, everybody settled everything, and nobody was blamed.

        absent: gave nobody anything for a round, which costs that round's credit and nothing else.
        """
        assert not self.swarm.violations
        for name in self.world.options.genesis_names():
            assert {e["round"] for e in self.all(name, "round")} == set(range(ROUNDS)), name
        for validator in ("validator-0", "validator-1"):
            for audit in self.all(validator, "audit"):
                assert audit["verdict"] in ("pass", None)
                excused = bool(absent) and audit["target"] == self.uid(absent) and validator == "validator-0"
                assert excused or audit["reason"] not in ("log missing", "no record")
            for event in self.all(validator, "scores"):
                duty = {uid: card["I"] for uid, card in event["cards"].items() if card["I"] is not None}
                duty.pop(str(self.uid(absent)) if absent else "", None)
                # Chunks that the absent one had taken and not reduced are missing in its backup's slice.
                assert all(value >= (0.97 if absent else 1.0) for value in duty.values()), duty


def _spans(how: dict[str, Any]) -> list[Span]:
    return [how[key] for key in ("outage", "full") if key in how]


@pytest.fixture(scope="module")
def timing(tmp_path_factory: pytest.TempPathFactory) -> RunManifest:
    return make_world(SimOptions(miners=4, rounds=ROUNDS), tmp_path_factory.mktemp("timing")).manifest


def test_an_outage_over_the_whole_exchange_costs_that_round_only(tmp_path: Path, timing: RunManifest) -> None:
    round_ = timing.round(1)
    cut = (round_.commit_block - 3.0, round_.map_block + 3.0)
    story = Story(tmp_path, {"miner-0": {"outage": cut}, "validator-1": {"outage": cut}})
    story.check(absent="miner-0")
    assert set(story.included("miner-0")) >= {0, 2, 3, 4}
    assert story.all("validator-1", "weights", round=3)


def test_a_validator_that_stands_still_while_logs_come_blames_nobody(tmp_path: Path, timing: RunManifest) -> None:
    round_, out = timing.round(1), io.StringIO()
    world = make_world(SimOptions(miners=4, rounds=3, seed=3), tmp_path, out)
    begin = round_.commit_block + 0.45  # some logs have come, some have not
    swarm = Swarm(world, (Incident("freeze", begin, round_.output_block + 1.0, ("validator-1",)),))
    run(swarm.run(lambda row: None))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    audits = [e for _, name, e in lines if name == "validator-1" and e["event"] == "audit" and e["round"] == 1]
    assert 0 < len(audits) < 4 and {e["reason"] for e in audits} == {"ok"}
    assert not swarm.violations


def test_an_outage_of_minutes_is_made_up_for(tmp_path: Path, timing: RunManifest) -> None:
    cut = (timing.round(1).start_block + 5.0, timing.round(3).start_block + 5.0)  # rounds 1 and 2
    story = Story(tmp_path, {"miner-1": {"outage": cut}, "owner": {"outage": cut}})
    story.check()
    assert set(story.included("miner-1")) >= {0, 4}


def test_a_worker_that_fails_costs_its_rounds(tmp_path: Path) -> None:
    planned: dict[int, list[Exception]] = {
        0: [OutOfMemory("no room", retry=True)],
        1: [RuntimeError("boom")],
        2: [MemoryError()],
    }
    story = Story(tmp_path, {"miner-0": {"planned": planned}})
    story.check()
    assert story.included("miner-0") == [0, 3, 4], "less was tried in round 0, rounds 1 and 2 were sat out"
    assert [e["what"] for e in story.all("miner-0", "fault")] == ["memory", "worker", "worker"]


def test_a_worker_that_never_works_ends_the_node_with_a_clear_message(tmp_path: Path) -> None:
    planned: dict[int, list[Exception]] = {i: [RuntimeError("no driver")] for i in range(ROUNDS)}
    story = Story(tmp_path, {"miner-0": {"planned": planned}})
    (ended,) = story.swarm.violations
    assert ended.nodes == ("miner-0",)
    assert "the worker failed in 3 rounds in a row" in ended.what and "no driver" in ended.what


def test_a_full_disk_costs_no_round(tmp_path: Path, timing: RunManifest) -> None:
    full = (timing.round(1).start_block - 6.0, timing.round(3).start_block - 6.0)
    story = Story(tmp_path, {"miner-0": {"full": full}, "validator-0": {"full": full}})
    story.check()
    assert story.included("miner-0") == list(range(ROUNDS))
    for name in ("miner-0", "validator-0"):
        (fault,) = story.all(name, "fault")
        assert fault["what"] == "disk" and "No space left" in fault["detail"]
        node = story.swarm.nodes[name]
        assert isinstance(node, TroubledNode)
        assert len(node.store.overflow) == 0, "written when there was room again"
        assert not list((node.store.root / "rounds").rglob("*.part"))
        assert list((node.store.root / "rounds" / "000001").glob("output-*"))


def test_a_gpu_that_fails_ends_the_node_at_once_with_what_mends_it(tmp_path: Path) -> None:
    story = Story(tmp_path, {"miner-0": {"planned": {1: [DeviceLost("the GPU failed: switch it off and on")]}}})
    (ended,) = story.swarm.violations
    assert ended.nodes == ("miner-0",) and "the GPU failed: switch it off and on" in ended.what
    assert [e["what"] for e in story.all("miner-0", "fault")] == ["device"]
    assert story.included("miner-0")[0] == 0, "the round before is not lost"
