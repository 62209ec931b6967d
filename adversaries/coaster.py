"""Miner: honest first steps, then forward passes alone.

It should not pay: bounds grow with the step only to a limit below 1, so a sketch of zeros fails wherever it is looked
at; a forward pass saves two thirds of a step, and what is looked at costs more.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from attack import FORWARD_COST, Attack, Bench
from stage import run

from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import WorkResult, WorkTask
from distributed_training.training.inner import Tokens

CLASS = "b"
EVIDENCE = "audit"
HONEST_SHARE = 0.6  # of the steps, by default


@dataclass(kw_only=True, eq=False)
class Coaster(Attack):
    k: int = 0  # steps with a gradient; 0: three fifths of those it may do

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        k = min(task.max_steps, self.k or max(1, int(HONEST_SHARE * task.max_steps)))
        done = bench.honest(replace(task, max_steps=k))
        if not done.steps:
            return done
        with bench.batches(task) as batches:
            later = islice(batches, len(done.steps), task.max_steps)
            coasted = [self._look(bench, done.steps[-1], k + n, batch) for n, batch in enumerate(later)]
        bench.spend(task, FORWARD_COST * len(coasted))
        steps = (*done.steps, *coasted)
        return replace(done, steps=steps, page_digests=bench.pages(task, len(steps)))

    def _look(self, bench: Bench, last: StepRecord, step: int, batch: Tokens) -> StepRecord:
        losses = bench.engine.loop.losses.forward(torch.from_numpy(batch)).numpy().astype(np.float16)
        none = tuple((0.0,) * len(row) for row in last.sketch)
        return replace(last, step=step, losses=tuple(float(x) for x in losses), sketch=none)


if __name__ == "__main__":
    sys.exit(run(Coaster))
