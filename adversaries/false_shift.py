"""Miner: names another step than that of its shift to the state.

In a run whose rounds overlap. It should not pay: a replay is shifted where the record says, and has other gradients
from the first step on that one of the two was shifted before.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"
RUN = "timing.overlap=true"


@dataclass(kw_only=True, eq=False)
class FalseShift(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        done = bench.honest(task)
        return done if task.onward is None else replace(done, shifted_at=0 if done.shifted_at != 0 else 1)


if __name__ == "__main__":
    sys.exit(run(FalseShift))
