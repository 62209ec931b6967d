"""Miner: honest first steps, the rest is invented.

It should not pay, however many steps are honest: step t of a claim is replayed with a probability that falls no
faster than 1/t, so what k honest steps save is lost again to the audits that reach behind k.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from attack import Attack, Bench, dice
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "audit"
HONEST_SHARE = 0.2  # of the steps, by default


@dataclass(kw_only=True, eq=False)
class Tail(Attack):
    k: int = 0  # honest steps; 0: a fifth of those it may do

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        k = min(task.max_steps, self.k or max(1, int(HONEST_SHARE * task.max_steps)))
        done, random = bench.honest(replace(task, max_steps=k)), dice(task)
        if not done.steps:
            return done
        rest = [bench.invented(random, t, done.steps[-1]) for t in range(len(done.steps), task.max_steps)]
        steps = (*done.steps, *rest)
        delta = done.delta * np.float32(len(steps) / len(done.steps))
        return replace(done, delta=delta, steps=steps, page_digests=bench.pages(task, len(steps)))


if __name__ == "__main__":
    sys.exit(run(Tail))
