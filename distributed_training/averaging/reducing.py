"""A reducer's part in one round: its own slice, and the slice of the reducer it stands in for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from distributed_training.averaging.codecs.int8 import parse_chunk
from distributed_training.averaging.combine import SliceOutput, reduce_slice
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import StoredOutput
from distributed_training.averaging.touch import Touch
from distributed_training.chain.base import Signer
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import backed_by, backup_of
from distributed_training.protocol.types import NO_BACKUP, Signed, SliceSpec, WorkRecord
from distributed_training.protocol.wire import encode_output, encode_signed, record_hash, signing_message

log = logging.getLogger(__name__)

# (hash of our output record, the one it replaces or None) -> True when it is on chain by s+X
Publish = Callable[[bytes, bytes | None], Awaitable[bool]]


class Reduction:
    """The inboxes of a round and what becomes of them. Waits for senders until the cut-off s+X-R."""

    def __init__(
        self,
        plan: RoundPlan,
        spec: SliceSpec,
        manifest: RunManifest,
        slices: Slices,
        signer: Signer,
        left_s: Callable[[], float],
        touch: Touch,
    ) -> None:
        """left_s: seconds until the cut-off. touch: is told by whoever sends for us."""
        self.plan, self._manifest, self._slices = plan, manifest, slices
        self._signer, self._left_s, self.touch = signer, left_s, touch
        everybody = frozenset(c.public_key for c in plan.candidates)
        self.own = Inbox(plan, spec, everybody)
        other = backed_by(plan.slices, spec.index)
        self.stand_in: Inbox | None = None
        if other is not None:
            primary = plan.slices[other.index].reducer
            self.stand_in = Inbox(plan, other, everybody - {primary}, needed=False)

    def inbox_for(self, slice_index: int) -> Inbox | None:
        """Where chunks of a slice belong; None: not here."""
        boxes = (self.own,) if self.stand_in is None else (self.own, self.stand_in)
        return next((box for box in boxes if box.spec.index == slice_index), None)

    def put_own(self, key: bytes, work: WorkRecord, chunks: Sequence[bytes]) -> None:
        """Our own contribution; `chunks` of the whole vector."""
        for box in filter(None, (self.own, self.stand_in)):
            ours = range(box.spec.first_chunk, box.spec.last_chunk)
            box.put(key, work, {c: parse_chunk(chunks[c], self.plan.layout, c) for c in ours})

    def needs_us(self, slice_index: int) -> Inbox | None:
        """The inbox with which we stand in for the reducer of a slice, if we do."""
        backup = backup_of(self.plan.slices, slice_index)
        return self.stand_in if backup is not None and backup.index == self.own.spec.index else None

    async def run(self, publish: Publish) -> bytes | None:
        """Reduce and publish; once more where we stand in for somebody. The last hash that is on chain."""
        try:
            return await self._run(publish)
        finally:
            for box in filter(None, (self.own, self.stand_in)):
                box.closed = True
                box.chunks.clear()  # nobody reduces them any more
            if not self.own.settled.is_set():
                self.own.settle(published=False)

    async def _run(self, publish: Publish) -> bytes | None:
        await self.own.wait(self._left_s())
        if missing := self.own.missing():
            log.info("slice %d: %d sender(s) incomplete at the cut-off", self.own.spec.index, len(missing))
            if await self.touch.cut_off(self.own.expected - set(missing)):
                log.warning("slice %d: our line is cut, it is left to the backup", self.own.spec.index)
                return None
        output = await self._reduced(self.own)
        said: bytes | None = None
        if self._left_s() > 0 or self.stand_in is None:
            said = await self._publish(output, None, publish)
            if said is None:
                return None
        if self.stand_in is None:
            return said
        if await self.stand_in.wait(self._left_s()):
            log.info("slice %d: standing in for its reducer", self.stand_in.spec.index)
            other = await self._keep(await self._reduced(self.stand_in))
            output = replace(output, record=replace(output.record, backup=other))
        if said is None or output.record.backup != NO_BACKUP:
            return await self._publish(output, said, publish) or said
        return said

    async def _reduced(self, inbox: Inbox) -> SliceOutput:
        index = self.plan.round.index
        log.debug("round %d: reducing slice %d of %d senders", index, inbox.spec.index, len(inbox.works))
        return await asyncio.to_thread(
            reduce_slice, self.plan, inbox.spec, inbox.chunks, dict(inbox.works), self._manifest
        )

    async def _publish(self, output: SliceOutput, amends: bytes | None, publish: Publish) -> bytes | None:
        output_hash = await self._keep(output)
        published = await publish(output_hash, amends)
        if amends is None:
            self.own.settle(published=published)
        return output_hash if published else None

    async def _keep(self, output: SliceOutput) -> bytes:
        body = encode_output(output.record)
        signed = encode_signed(Signed(body, self._signer.sign(signing_message(body))))
        chunks = await asyncio.to_thread(b"".join, [chunk.data for chunk in output.chunks])
        await self._slices.keep(self.plan, output.record, record_hash(body), StoredOutput(signed, chunks))
        return record_hash(body)
