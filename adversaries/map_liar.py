"""Validator: claims to hold every slice.

It should not harm: a slice counts by a majority of stake, and one that nobody can give is zero for everybody.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from attack import Attack
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.protocol.types import Commitment, Role

CLASS = "harm"
EVIDENCE = "none"


@dataclass(kw_only=True, eq=False)
class MapLiar(Attack):
    async def say(self, commitment: Commitment, doors: Adapters) -> Commitment:
        if commitment.second is None:
            return commitment
        return replace(commitment, second=b"\xff" * len(commitment.second))


if __name__ == "__main__":
    sys.exit(run(MapLiar, Role.VALIDATOR))
