"""Miner: trains nothing; zeros, and an invented log.

It should not pay: zeros have no norm, so no reducer gives them weight or credit; and a replay fails at step 0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from attack import Bench
from free_rider import FreeRider
from stage import run

from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "credit"


@dataclass(kw_only=True, eq=False)
class Zeros(FreeRider):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        invented = super().work(task, bench)
        return replace(invented, delta=np.zeros_like(invented.delta))


if __name__ == "__main__":
    sys.exit(run(Zeros))
