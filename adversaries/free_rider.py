"""A miner that does not train: it commits noise, claims every step, and invents its log.

    python adversaries/free_rider.py <flags of neurons/miner.py>

The pages it names are the assigned ones, its norms and digests are true, its log looks like training. Only a replay
can tell.
"""

from __future__ import annotations

import sys

import numpy as np
from disguise import assigned_pages, run

from distributed_training.engine import Engine
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.work import WorkResult, WorkTask

TYPICAL_MOVE = 3e-3  # per coordinate and round: about what AdamW moves
CLAIMED_STEPS = 20


class FreeRider:
    """Worker: noise of a plausible size, a falling loss curve, random sketches."""

    def __init__(self, engine: Engine, manifest: RunManifest) -> None:
        self._engine, self._manifest = engine, manifest

    def work(self, task: WorkTask) -> WorkResult:
        random = np.random.default_rng(int.from_bytes(task.beacon[:8], "little"))
        steps = min(task.max_steps, CLAIMED_STEPS)
        delta = random.normal(0.0, TYPICAL_MOVE, len(task.state.params)).astype(np.float32)
        log = tuple(self._step(random, t) for t in range(steps))
        return WorkResult(delta, log, assigned_pages(self._engine, self._manifest, task, steps), None)

    def _step(self, random: np.random.Generator, step: int) -> StepRecord:
        level = 3.0 - 0.02 * step
        losses = random.normal(level, 0.1, self._manifest.data.batch_size).astype(np.float16)
        shape = (len(self._engine.loop.groups), self._manifest.audit.sketch_size)
        sketch = random.normal(0.0, 0.05, shape).astype(np.float16)
        return StepRecord(
            step=step,
            losses=tuple(float(x) for x in losses),
            grad_norm=float(np.float32(abs(random.normal(1.0, 0.1)))),
            sketch=tuple(tuple(float(x) for x in row) for row in sketch),
        )


if __name__ == "__main__":
    sys.exit(run(lambda engine, manifest, victim_dir: FreeRider(engine, manifest)))
