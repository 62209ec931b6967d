"""A candidate that commits its work and sends it to nobody, or late: the others' slices do not wait for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducing import Reduction
from distributed_training.engine import Engine
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import SliceSpec
from distributed_training.roles.mining.work import Worker
from distributed_training.roles.parts import Parts
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import make_world


class Silent(SimNode):
    """Commits and reduces as everybody does, and begins to send `late_s` after the others; None: never."""

    late_s: float | None = None

    def _worker(self, engine: Engine, manifest: RunManifest, parts: Parts) -> Worker:
        honest = parts.butterfly.send

        async def send(plan: RoundPlan, spec: SliceSpec, own: OwnWork, reduction: Reduction | None) -> None:
            if self.late_s is not None:
                await asyncio.sleep(self.late_s)
                await honest(plan, spec, own, reduction)
            elif reduction is not None:  # it does not wait for others to take what it never sends
                reduction.touch.took(spec.reducer)

        parts.butterfly.send = send  # type: ignore[method-assign]
        return super()._worker(engine, manifest, parts)


@pytest.mark.parametrize("late_s", [None, 2.5])
def test_slices_do_not_wait_for_who_sends_nothing_and_take_who_comes_late(tmp_path: Path, late_s: float | None) -> None:
    world = make_world(SimOptions(miners=5, rounds=1, validators=2, width=2), tmp_path)
    round_, recorder = world.manifest.round(0), world.recorder

    async def main() -> None:
        recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        nodes = [SimNode(world, name) for name in world.options.genesis_names()[:-1]]
        silent = Silent(world, world.options.genesis_names()[-1])
        silent.late_s = late_s
        for node in (*nodes, silent):
            node.start()
        await asyncio.sleep(world.block_time(round_.end_block))
        for node in (*nodes, silent):
            await node.kill()

    run(main())
    words = recorder.settled[0]
    assert len({word.root for word in words.values()}) == 1 and all(word.applied for word in words.values())
    assert {word.included for word in words.values()} == {4 if late_s is None else 5}
    last = max(recorder.held_at[0].values()) - world.block_time(round_.commit_block)
    cut_off = world.manifest.timing.output - world.manifest.timing.reduce_margin - world.manifest.timing.commit
    if late_s is None:
        assert last < cut_off + 1 + world.manifest.timing.finality, "before what is published at the cut-off is final"
