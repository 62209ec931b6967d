"""Miner: several uids share one trainer in turn, honestly.

It should not pay more than one uid would: what is paid for is steps, whoever claims them, and newness is waited for by
each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Attack, Bench
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "b"
EVIDENCE = "none"


@dataclass(kw_only=True, eq=False)
class Splitter(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        return bench.honest(replace(task, max_steps=max(1, task.max_steps // max(1, len(self.fellows)))))


if __name__ == "__main__":
    sys.exit(run(Splitter))
