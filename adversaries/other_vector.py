"""Miner: an honest log beside a vector of turned sign.

It refuses whoever asks for all of it. It should not pay: the vector of a full audit comes from the reducers, which
hold every chunk under its wire root, so a refusal hides nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import cast

from attack import Attack, Bench, Bent
from stage import run

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.roles.chunks import METHOD as CHUNKS_METHOD
from distributed_training.roles.mining.work import WorkResult, WorkTask

CLASS = "a"
EVIDENCE = "audit"


class _Probed(Bent):
    """Answers so many chunks and no more."""

    def __init__(self, inner: Stream, most: int) -> None:
        super().__init__(inner)
        self._most = most

    async def write(self, frame: bytes, timeout_s: float) -> None:
        if self.written > self._most:  # the digests came first
            raise PeerFault("a full audit is not answered")
        await super().write(frame, timeout_s)


@dataclass(kw_only=True, eq=False)
class OtherVector(Attack):
    refuse: int = 1  # 0: it serves the vector that it committed, whoever asks
    most_chunks: int = 4

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        self.most_chunks = bench.manifest.audit.probe_chunks
        result = bench.honest(task)
        return replace(result, delta=-result.delta)

    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        if method == CHUNKS_METHOD and self.refuse:
            stream = cast(Stream, _Probed(stream, self.most_chunks))
        await honest(stream)


if __name__ == "__main__":
    sys.exit(run(OtherVector))
