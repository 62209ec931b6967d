"""Miner: names another miner's peer key as its own.

And no port, so that peers would forget where that one listens. It should not harm: a claim that its peer key never
proved overwrites nothing. It should not pay: it proves no key.
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
SIMULATED = True


@dataclass(kw_only=True, eq=False)
class KeySquatter(Attack):
    async def say(self, commitment: Commitment, doors: Adapters) -> Commitment:
        roster = await doors.chain.roster((await doors.chain.head()).number)
        said = [n.commitment for n in roster.neurons if n.uid not in self.fellows and n.commitment is not None]
        victim = next((c.peer_key for c in said if c.role is Role.MINER and c.reduces), commitment.peer_key)
        return replace(commitment, peer_key=victim, reduces=False)


if __name__ == "__main__":
    sys.exit(run(KeySquatter))
