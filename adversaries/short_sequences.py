"""Miner: trains on the first half of every sequence.

It should not pay: the losses and the gradient of half of the tokens are others, from step 0 on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class ShortSequences(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        length = max(2, bench.manifest.data.sequence_length // 2)
        with bench.batches(task) as batches:
            result = bench.train(task, (batch[:, :length] for batch in batches), task.max_steps)
        delta = task.state.params - result.end
        return WorkResult(delta, result.steps, bench.pages(task, len(result.steps)), None)


if __name__ == "__main__":
    sys.exit(run(ShortSequences))
