"""Miner: sends its chunks to some reducers only.

It should not pay: slices that are gated for missing senders credit and debit nobody, so those it starves lose
nothing; its own credit falls once it is left out of more than a third of the slices.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.averaging.scatter import METHOD
from distributed_training.errors import NetworkFault
from distributed_training.network.base import Stream

CLASS = "c"
EVIDENCE = "credit"


@dataclass(kw_only=True, eq=False)
class Picky(Attack):
    async def open(self, peer_key: bytes, method: str, timeout_s: float, doors: Adapters) -> Stream:
        if method == METHOD and peer_key[0] % 2:
            raise NetworkFault("this reducer gets nothing")
        return await super().open(peer_key, method, timeout_s, doors)


if __name__ == "__main__":
    sys.exit(run(Picky))
