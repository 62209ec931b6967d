"""Miner: trains only the second half of the layers.

That saves a part of the backward pass. It should not pay: the sketch has a group for every layer, and a group whose
gradient was not computed is off by all of it at step 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from attack import Attack, Bench
from stage import run

from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import WorkResult, WorkTask
from distributed_training.training.flat import trained

CLASS = "a"
EVIDENCE = "audit"
COST = 2 / 3  # of a step: no backward pass through the frozen half


@dataclass(kw_only=True, eq=False)
class FrozenLayers(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        loop, start = bench.engine.loop, torch.from_numpy(task.state.params.copy())
        frozen = max(1, len(loop.groups) // 2)
        stop = loop.groups[frozen - 1].stop

        @torch.no_grad()
        def thaw_nothing(record: StepRecord, seconds: float) -> None:
            place = 0
            for _, parameter in trained(loop.model):
                if place < stop:
                    parameter.copy_(start[place : place + parameter.numel()].view_as(parameter))
                place += parameter.numel()
            task.on_step(record, seconds)

        with bench.batches(task) as batches:
            result = bench.train(task, batches, task.max_steps, thaw_nothing)
        bench.spend(task, (COST - 1) * len(result.steps))
        none = tuple(np.zeros(bench.manifest.audit.sketch_size).tolist())
        steps = tuple(replace(s, sketch=(*(none for _ in range(frozen)), *s.sketch[frozen:])) for s in result.steps)
        return WorkResult(task.state.params - result.end, steps, bench.pages(task, len(steps)), None)


if __name__ == "__main__":
    sys.exit(run(FrozenLayers))
