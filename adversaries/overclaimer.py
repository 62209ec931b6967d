"""Miner: claims more steps than its pages hold.

It should not pay: pages are counted before anything is replayed, and what they cannot hold is a failed audit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Bench
from free_rider import FreeRider
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class Overclaimer(FreeRider):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        result = super().work(replace(task, max_steps=1), bench)
        count = bench.manifest.inner.max_steps
        return replace(result, steps=tuple(replace(result.steps[0], step=number) for number in range(count)))


if __name__ == "__main__":
    sys.exit(run(Overclaimer))
