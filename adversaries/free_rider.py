"""Miner: trains nothing; noise, and an invented log.

    python adversaries/free_rider.py <flags of neurons/miner.py>

It commits noise and claims every step. The pages it names are the assigned ones, its norms and digests are true, its
log looks like training. It should not pay: the first replayed step has another gradient, so every audit fails at step
0, and one failed audit costs more than the rounds before it brought.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from attack import TYPICAL_MOVE, Attack, Bench, dice
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"
CLAIMED_STEPS = 20


@dataclass(kw_only=True, eq=False)
class FreeRider(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        random, steps = dice(task), min(task.max_steps, CLAIMED_STEPS)
        delta = random.normal(0.0, TYPICAL_MOVE, len(task.state.params)).astype(np.float32)
        log = tuple(bench.invented(random, t) for t in range(steps))
        return WorkResult(delta, log, bench.pages(task, steps), None)


if __name__ == "__main__":
    sys.exit(run(FreeRider))
