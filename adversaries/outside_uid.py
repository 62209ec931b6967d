"""Miner: has a uid that the manifest does not count.

It names a page that nobody assigned and invents its log. It should not harm: such a uid is no candidate, so nobody
looks at its record.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from attack import TYPICAL_MOVE, Attack, Bench, dice
from stage import run

from distributed_training.protocol.merkle import digest
from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "harm"
EVIDENCE = "none"
SIMULATED = True


@dataclass(kw_only=True, eq=False)
class OutsideUid(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        random = dice(task)
        delta = random.normal(0.0, TYPICAL_MOVE, len(task.state.params)).astype(np.float32)
        log = tuple(bench.invented(random, t) for t in range(task.max_steps))
        return WorkResult(delta, log, (digest(b"no page"),), None)


if __name__ == "__main__":
    sys.exit(run(OutsideUid))
