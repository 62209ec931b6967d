"""A miner that does not train: it commits noise, claims every step, and invents its log.

    python adversaries/free_rider.py <flags of neurons/miner.py>

The pages it names are the assigned ones, its norms and digests are true, its log looks like training. Only a replay
can tell.
"""

from __future__ import annotations

import sys

import numpy as np

from distributed_training.config import load_config, run_main
from distributed_training.data.loader import pages_used
from distributed_training.engine import Engine
from distributed_training.manifest import RunManifest
from distributed_training.node import main
from distributed_training.roles.work import Worker, WorkResult, WorkTask, round_permutation
from distributed_training.types import Role, StepRecord

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
        return WorkResult(delta, tuple(self._step(random, t) for t in range(steps)), self._pages(task, steps), None)

    def _step(self, random: np.random.Generator, step: int) -> StepRecord:
        level = 3.0 - 0.02 * step
        losses = np.float16(random.normal(level, 0.1, self._manifest.data.batch_size))
        shape = (len(self._engine.loop.groups), self._manifest.audit.sketch_size)
        sketch = np.float16(random.normal(0.0, 0.05, shape))
        return StepRecord(
            step=step,
            losses=tuple(float(x) for x in losses),
            grad_norm=float(np.float32(abs(random.normal(1.0, 0.1)))),
            sketch=tuple(tuple(float(x) for x in row) for row in sketch),
        )

    def _pages(self, task: WorkTask, steps: int) -> tuple[bytes, ...]:
        return pages_used(
            self._engine.source,
            self._engine.tokenizer,
            round_permutation(self._manifest, task.round, task.beacon),
            max_uids=self._manifest.max_uids,
            uid=task.uid,
            batch_size=self._manifest.data.batch_size,
            sequence_length=self._manifest.data.sequence_length,
            num_steps=steps,
        )


def make_worker(engine: Engine, manifest: RunManifest) -> Worker:
    return FreeRider(engine, manifest)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(Role.MINER, load_config(Role.MINER, sys.argv[1:]), make_worker)))
