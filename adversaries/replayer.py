"""Miner: commits its first round's work again and again.

It should not pay: the state, the pages and the sketch's seed are others in every round, so the log fails at step 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class Replayer(Attack):
    first: WorkResult | None = None

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        if self.first is None or not self.first.steps:
            self.first = bench.honest(task)
            return replace(self.first, delta=self.first.delta.copy())
        pages = bench.pages(task, len(self.first.steps))
        return replace(self.first, delta=self.first.delta.copy(), page_digests=pages)


if __name__ == "__main__":
    sys.exit(run(Replayer))
