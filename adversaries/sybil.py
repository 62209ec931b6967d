"""Miner: several uids commit the work of one trainer.

Each uid names its own pages. It should not pay: every uid has pages of its own, so the work of another uid fails at
step 0. What one trainer does honestly for several uids in turn earns what it would earn for one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "audit"
FIRST_IS_HONEST = True


@dataclass(kw_only=True, eq=False)
class Sybil(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        leader = min(self.fellows, default=task.uid)
        result = bench.honest(replace(task, uid=leader), paid_by_another=leader != task.uid)
        return replace(result, page_digests=bench.pages(task, len(result.steps)))


if __name__ == "__main__":
    sys.exit(run(Sybil))
