"""A miner that claims more steps than its assigned pages hold, so that nobody could replay them all.

python adversaries/overclaimer.py <flags of neurons/miner.py>
"""

from __future__ import annotations

import sys
from dataclasses import replace

from disguise import run
from free_rider import FreeRider

from distributed_training.roles.mining.work import WorkResult, WorkTask


class Overclaimer(FreeRider):
    """Worker: a free rider that claims every step the manifest allows."""

    def work(self, task: WorkTask) -> WorkResult:
        result = super().work(replace(task, max_steps=1))
        count = self._manifest.inner.max_steps
        log = tuple(replace(result.steps[0], step=number) for number in range(count))
        return replace(result, steps=log)


if __name__ == "__main__":
    sys.exit(run(lambda engine, manifest, victim_dir: Overclaimer(engine, manifest)))
