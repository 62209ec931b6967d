"""Miner: as a reducer, leaves out all but its fellows.

It should not pay: of each sender the worst third of the slices is dropped, so a minority of reducers takes nothing
from anybody, and a reducer's own duty falls with the expected senders that it leaves out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attack import Attack
from stage import run

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.plan import RoundPlan
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import SliceSpec, WorkRecord

CLASS = "c"
EVIDENCE = "reducer"


@dataclass(kw_only=True, eq=False)
class Omitter(Attack):
    def reduce(
        self,
        plan: RoundPlan,
        spec: SliceSpec,
        received: Mapping[bytes, Mapping[int, Any]],
        works: Mapping[bytes, WorkRecord],
        manifest: RunManifest,
    ) -> SliceOutput:
        friends = {c.public_key for c in plan.candidates if c.uid in self.fellows} | {spec.reducer}
        kept = {key: chunks for key, chunks in received.items() if key in friends}
        return super().reduce(plan, spec, kept, works, manifest)


if __name__ == "__main__":
    sys.exit(run(Omitter))
