"""A uid that the manifest does not count: the chain lets it register, and nobody is the worse for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distributed_training.engine import Engine
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.records import Recorder
from distributed_training.simulation.world import make_world


class Heard(Recorder):
    """Keeps what nodes say of audits and troubles."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.kept: list[tuple[str, Mapping[str, Any]]] = []

    def write(self, node: str, event: Mapping[str, Any]) -> None:
        super().write(node, event)
        if event["event"] in ("audit", "fault"):
            self.kept.append((node, event))


class MadeUp:
    def __init__(self, groups: int) -> None:
        self._groups = groups

    def work(self, task: WorkTask) -> WorkResult:
        steps = (StepRecord(0, (2.0, 2.0), 1.0, ((0.0,) * 32,) * self._groups),)
        return WorkResult(np.full(len(task.state.params), 1e-3, np.float32), steps, (digest(b"page"),), None)


class Stranger(SimNode):
    """It has no pages of its own, and makes its work up."""

    def _worker(self, engine: Engine, manifest: RunManifest, parts: Parts) -> Worker:
        return MadeUp(len(engine.loop.groups))


def test_a_uid_beyond_the_manifests_takes_no_part_and_ends_nobodys_audits(tmp_path: Path) -> None:
    options = SimOptions(miners=3, rounds=2, validators=2, width=2)
    world = make_world(options, tmp_path)
    heard = world.recorder = Heard(tmp_path)
    newcomers = [f"miner-{i}" for i in range(3, 3 + options.spare + 1)]

    async def main() -> None:
        heard.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        nodes = [SimNode(world, name) for name in options.genesis_names()]
        for node in nodes:
            node.start()
        await asyncio.sleep(1.0)
        world.ledger.change(max_uids=18)  # the subnet's owner may, whatever the run counts
        await asyncio.sleep(1.0)
        for name in newcomers:
            world.register(name)
        await asyncio.sleep(1.0)
        world.ledger.change(max_uids=14)
        await asyncio.sleep(1.0)
        stranger = Stranger(world, newcomers[-1])
        beyond = world.ledger.roster(world.ledger.head()).by_hotkey(stranger.key.hotkey)
        assert beyond is not None and beyond.uid == world.manifest.max_uids == 14
        stranger.start()
        await asyncio.sleep(world.block_time(world.manifest.round(0).end_block) - heard.now())
        world.ledger.change(max_uids=18)
        await asyncio.sleep(1.0)
        late = SimNode(world, newcomers[0])
        late.start()
        await asyncio.sleep(world.block_time(world.manifest.round(1).start_block + 20) - heard.now())
        with pytest.raises(ConfigError, match="does not fit this chain: max_uids 14 is too small: the subnet has 18"):
            assert late.task is not None
            late.task.result()
        for node in (*nodes, stranger):
            await node.kill()

    run(main())
    assert all(word.applied and word.included == 3 for word in heard.settled[0].values())
    audits = {(node, e["target"]) for node, e in heard.kept if e["event"] == "audit" and e["verdict"] == "pass"}
    assert len(audits) == 6, "each of two validators passed each of three miners"
    assert not [e for node, e in heard.kept if e["event"] == "fault" and node.startswith("validator")]
