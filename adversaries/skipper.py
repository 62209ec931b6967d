"""Miner: honest work, but answers every second probe.

It should not pay: an unanswered probe is an observation of no bandwidth, and B falls with the share of them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.roles.chunks import METHOD as CHUNKS_METHOD

CLASS = "b"
EVIDENCE = "probe"


@dataclass(kw_only=True, eq=False)
class Skipper(Attack):
    asked: int = 0

    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method == CHUNKS_METHOD:
            self.asked += 1
            if self.asked % 2:
                raise PeerFault("not this time")
        await honest(stream)


if __name__ == "__main__":
    sys.exit(run(Skipper))
