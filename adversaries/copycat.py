"""Miner: another miner's vector and log of the former round.

    python adversaries/copycat.py --victim-dir RUN_DIR/nodes/miner-0 <flags of neurons/miner.py>

They are given to it, as if stolen. Contents stay private until the commit deadline, so nobody can copy the round that
is being run. It should not pay: pages and sketches follow from the round's beacon and the uid, so a copy fails at
step 0. In a round whose former round it has nothing of, it does nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from attack import Attack, Bench
from stage import run

from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.contribution import split_wire
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import most_pages
from distributed_training.protocol.wire import decode_log
from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"


@dataclass(kw_only=True, eq=False)
class Copycat(Attack):
    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        folder, manifest = self.victim_dir / "rounds" / f"{task.round - 1:06d}", bench.manifest
        try:
            wire, log = (folder / "wire").read_bytes(), (folder / "log").read_bytes()
        except FileNotFoundError:
            return WorkResult(np.zeros_like(task.state.params), (), (), None)
        layout = layout_of(manifest, len(task.state.params))
        uplink = uplink_of(manifest.average)
        chunks = [uplink.parse(data, layout, c).decode() for c, data in enumerate(split_wire(wire, layout, uplink))]
        _, steps = decode_log(
            log,
            max_pages=most_pages(manifest),
            max_steps=manifest.inner.max_steps,
            batch_size=manifest.data.batch_size,
            groups=len(bench.engine.loop.groups),
            sketch_size=manifest.audit.sketch_size,
        )
        return WorkResult(np.concatenate(chunks), steps, bench.pages(task, len(steps)), None)


if __name__ == "__main__":
    sys.exit(run(Copycat))
