"""Miner: noise on the wire, and its feedback is not shown.

In a run whose uplink codec keeps feedback. Nobody else has what would give it away. It should not pay: every validator
asks every miner for some of its buffer in every round, and who does not show it has no credit for that round.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import cast

from attack import Bent
from hoarder import Hoarder
from stage import run

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.roles.chunks import GLANCE, LOOK, METHOD

CLASS = "a"
EVIDENCE = "credit"
RUN = "average.uplink=sparse"


class _Asked(Bent):
    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        said = await self.inner.read(max_bytes, timeout_s)
        if said in (GLANCE, LOOK):
            raise PeerFault("no feedback of ours")
        return said


@dataclass(kw_only=True, eq=False)
class Hider(Hoarder):
    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        await honest(cast(Stream, _Asked(stream)) if method == METHOD else stream)


if __name__ == "__main__":
    sys.exit(run(Hider))
