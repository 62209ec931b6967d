"""Miner: honest, but hides the vector at whose end it began.

In a run whose rounds overlap. It should not pay: who was sent its chunks gives most of them, the rest is missing, and a
round whose beginning cannot be had brings no credit.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.roles.began import METHOD

CLASS = "b"
EVIDENCE = "none"  # of its validators: no credit for such a round
SIMULATED = True
RUN = "timing.overlap=true"


@dataclass(kw_only=True, eq=False)
class HiddenStart(Attack):
    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method == METHOD:
            raise PeerFault("not from me")
        await honest(stream)


if __name__ == "__main__":
    sys.exit(run(HiddenStart))
