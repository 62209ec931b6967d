"""Miner: answers every probe at the last moment.

So audits would take longer than a round. It should not harm: probes run side by side under one budget of time, so one
slow answer delays nobody else's audit.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import cast

from attack import Attack, Bent
from stage import run

from distributed_training.network.base import Stream, StreamHandler
from distributed_training.roles.chunks import METHOD as CHUNKS_METHOD

CLASS = "harm"
EVIDENCE = "none"


class _Late(Bent):
    pause_s = 4.0

    async def write(self, frame: bytes, timeout_s: float) -> None:
        await asyncio.sleep(min(self.pause_s, timeout_s))
        await super().write(frame, timeout_s)


@dataclass(kw_only=True, eq=False)
class SlowProber(Attack):
    pause_s: float = 4.0  # before each chunk

    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method == CHUNKS_METHOD:
            late = _Late(stream)
            late.pause_s, stream = self.pause_s, cast(Stream, late)
        await honest(stream)


if __name__ == "__main__":
    sys.exit(run(SlowProber))
