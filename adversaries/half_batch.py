"""Miner: trains on half of every batch.

It tells the losses of that half twice. It should not pay: the mean gradient of half a batch is not that of the batch,
from step 0 on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack, Bench, padded
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class HalfBatch(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        size = bench.manifest.data.batch_size
        with bench.batches(task) as batches:
            result = bench.train(task, (batch[: max(1, size // 2)] for batch in batches), task.max_steps)
        steps = padded(result.steps, size)
        return WorkResult(task.state.params - result.end, steps, bench.pages(task, len(steps)), None)


if __name__ == "__main__":
    sys.exit(run(HalfBatch))
