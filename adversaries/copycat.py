"""A miner that does not train: it commits the vector and the log of another miner's former round.

    python adversaries/copycat.py --victim-dir RUN_DIR/nodes/miner-0 <flags of neurons/miner.py>

The bytes are given to it, as if stolen: contents stay private until the commit deadline, so it cannot copy the
round that is being run. In a round whose former round it has nothing of, it does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from disguise import assigned_pages, run

from distributed_training.averaging.codecs.int8 import parse_chunk
from distributed_training.averaging.contribution import split_wire
from distributed_training.averaging.plan import layout_of
from distributed_training.engine import Engine
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.wire import decode_log
from distributed_training.roles.mining.work import WorkResult, WorkTask


class Copycat:
    """Worker: what the victim committed one round ago, under our own name and pages."""

    def __init__(self, engine: Engine, manifest: RunManifest, victim_dir: Path) -> None:
        self._engine, self._manifest, self._victim_dir = engine, manifest, victim_dir

    def work(self, task: WorkTask) -> WorkResult:
        folder = self._victim_dir / "rounds" / f"{task.round - 1:06d}"
        try:
            wire, log = (folder / "wire").read_bytes(), (folder / "log").read_bytes()
        except FileNotFoundError:
            return WorkResult(np.zeros_like(task.state.params), (), (), None)
        layout = layout_of(self._manifest, len(task.state.params))
        chunks = [parse_chunk(data, layout, c).decode() for c, data in enumerate(split_wire(wire, layout))]
        steps = decode_log(
            log,
            max_steps=self._manifest.inner.max_steps,
            batch_size=self._manifest.data.batch_size,
            groups=len(self._engine.loop.groups),
            sketch_size=self._manifest.audit.sketch_size,
        )
        return WorkResult(
            np.concatenate(chunks), steps, assigned_pages(self._engine, self._manifest, task, len(steps)), None
        )


if __name__ == "__main__":
    sys.exit(run(Copycat))
