"""A slice is reduced chunk by chunk while it comes: each as soon as every sender that is waited for has given it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from distributed_training.averaging.codecs.base import Chunk
from distributed_training.averaging.combine import ChunkReducer, Made, reduce_chunk
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.members import sender_weight
from distributed_training.protocol.manifest import RunManifest


class Ahead:
    """What of one inbox is reduced already: the very bytes that `reduce_slice` would make of it."""

    def __init__(self, inbox: Inbox, manifest: RunManifest) -> None:
        self._inbox, self._manifest = inbox, manifest
        self._reducer: ChunkReducer | None = None
        self._made: dict[int, Made] = {}
        self._batch: asyncio.Task[dict[int, Made]] | None = None

    async def run(self) -> None:
        """Until it is cancelled; what a thread does then is waited for by `made`."""
        while True:
            chunks = await self._inbox.whole()
            plan, works = self._inbox.plan, self._inbox.works.items()
            raw = {key: sender_weight(work, plan, self._manifest.average) for key, work in works}
            received = {key: {c: held[c] for c in chunks if c in held} for key, held in self._inbox.chunks.items()}
            self._batch = asyncio.create_task(
                asyncio.to_thread(self._reduce, chunks, received, raw), name="reduce some"
            )
            self._made |= await asyncio.shield(self._batch)

    async def made(self) -> Mapping[int, Made]:
        """By chunk: the senders that are in it, and what they gave."""
        if self._batch is not None:
            self._made |= await self._batch
        return self._made

    async def forget(self) -> None:
        """After `run`: what a thread still does is waited for, and all of it dropped."""
        if self._batch is not None:
            await asyncio.wait({self._batch})
        self._made, self._batch, self._reducer = {}, None, None

    def _reduce(
        self, chunks: Sequence[int], received: Mapping[bytes, Mapping[int, Chunk]], raw: Mapping[bytes, float]
    ) -> dict[int, Made]:
        plan = self._inbox.plan
        self._reducer = self._reducer or ChunkReducer(plan.layout, plan.output)
        return {chunk: reduce_chunk(self._reducer, plan, chunk, received, raw) for chunk in chunks}
