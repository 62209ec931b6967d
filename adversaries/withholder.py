"""Miner: gives the slice that it reduced to nobody.

The output's hash is on chain. It should not pay: a slice that no validator holds does not count, so the reducer has
no duty for it and is no reducer in the next rounds; the slice is zero for everybody alike.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.averaging.wants import METHOD
from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, StreamHandler

CLASS = "c"
EVIDENCE = "slice"


@dataclass(kw_only=True, eq=False)
class Withholder(Attack):
    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method == METHOD:
            raise PeerFault("no slice of ours")
        await honest(stream)


if __name__ == "__main__":
    sys.exit(run(Withholder))
