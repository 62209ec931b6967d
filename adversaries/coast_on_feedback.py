"""Miner: honest logs, but no work in every second vector.

In a run whose uplink codec keeps feedback: it sends what its buffer still holds. What is on the wire is a fair encoding
and goes the way of former work. It should not pay: what was added to the buffer is nothing, and that points nowhere; a
buffer that is not shown brings no credit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"
RUN = "average.uplink=sparse"


@dataclass(kw_only=True, eq=False)
class CoastOnFeedback(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        done = bench.honest(task, paid_by_another=task.round % 2 == 1)
        return replace(done, delta=np.zeros_like(done.delta)) if task.round % 2 else done


if __name__ == "__main__":
    sys.exit(run(CoastOnFeedback))
