"""Miner: trains on other data than its assigned pages.

It should not pay: the losses and gradients of other data are others, from step 0 on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class OtherData(Attack):
    data_uid: int = 0  # whose pages it trains on

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        with bench.batches(task, self.data_uid) as batches:
            result = bench.train(task, batches, task.max_steps)
        delta = task.state.params - result.end
        return WorkResult(delta, result.steps, bench.pages(task, len(result.steps)), None)


if __name__ == "__main__":
    sys.exit(run(OtherData))
