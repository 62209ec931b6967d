"""A reducer's part in one round: its own slice, and the slice of the reducer it stands in for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from distributed_training.averaging.ahead import Ahead
from distributed_training.averaging.codecs.base import Chunk
from distributed_training.averaging.combine import SliceOutput, reduce_slice
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.sent import Sent
from distributed_training.averaging.touch import Touch
from distributed_training.chain.base import Signer
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import backed_by, backup_of
from distributed_training.protocol.types import Signed, SliceSpec, WorkRecord
from distributed_training.protocol.wire import encode_output, encode_signed, record_hash, signing_message

log = logging.getLogger(__name__)

# (hash of our output record, the one it replaces or None) -> True when it is on chain by s+X
Publish = Callable[[bytes, bytes | None], Awaitable[bool]]
Reduce = Callable[..., SliceOutput]  # `reduce_slice`; an adversary's own takes the same


class Reduction:
    """The inboxes of a round and what becomes of them. Waits for senders until the cut-off s+X-R, but for silent ones
    only with what is amended: who sends nothing holds nobody up."""

    def __init__(
        self,
        plan: RoundPlan,
        spec: SliceSpec,
        manifest: RunManifest,
        slices: Slices,
        signer: Signer,
        left_s: Callable[[], float],
        quiet_s: float,
        touch: Touch,
        sent: Sent,
        reduce: Reduce = reduce_slice,
    ) -> None:
        """left_s: seconds until the cut-off. quiet_s: a sender that is not heard for so long is silent. touch: is told
        by whoever sends for us. sent: keeps what came."""
        self.plan, self._manifest, self._slices = plan, manifest, slices
        self._signer, self._left_s, self._quiet_s = signer, left_s, quiet_s
        self.touch, self._sent, self._reduce = touch, sent, reduce
        self._made: dict[int, tuple[int, SliceOutput]] = {}  # slice -> how many chunks were held, and what they gave
        everybody = frozenset(c.public_key for c in plan.candidates)
        self.own = Inbox(plan, spec, everybody)
        other = backed_by(plan.slices, spec.index)
        self._ahead = Ahead(self.own, manifest)
        self.stand_in: Inbox | None = None
        if other is not None:
            primary = plan.slices[other.index].reducer
            self.stand_in = Inbox(plan, other, everybody - {primary}, needed=False)

    def inbox_for(self, slice_index: int) -> Inbox | None:
        """Where chunks of a slice belong; None: not here."""
        boxes = (self.own,) if self.stand_in is None else (self.own, self.stand_in)
        return next((box for box in boxes if box.spec.index == slice_index), None)

    async def put_own(self, key: bytes, work: WorkRecord, chunks: Sequence[bytes]) -> None:
        """Our own contribution; `chunks` of the whole vector."""
        plan = self.plan

        def parse(places: range) -> dict[int, Chunk]:
            return {c: plan.uplink.parse(chunks[c], plan.layout, c) for c in places}

        for box in filter(None, (self.own, self.stand_in)):
            ours = range(box.spec.first_chunk, box.spec.last_chunk)
            box.put(key, work, await asyncio.to_thread(parse, ours))

    @property
    def _honest(self) -> bool:
        """An adversary's own way to reduce sees everything at once."""
        return self._reduce is reduce_slice

    def needs_us(self, slice_index: int) -> Inbox | None:
        """The inbox with which we stand in for the reducer of a slice, if we do."""
        backup = backup_of(self.plan.slices, slice_index)
        return self.stand_in if backup is not None and backup.index == self.own.spec.index else None

    async def run(self, publish: Publish) -> bytes | None:
        """Reduce and publish; once more where late chunks came or we stand in for somebody. The last hash on chain."""
        ahead = asyncio.create_task(self._ahead.run(), name="reduce ahead") if self._honest else None
        reaching = asyncio.create_task(self._reaches_others(), name="reach other reducers")
        try:
            said = await self._run(publish, reaching)
            for box in filter(None, (self.own, self.stand_in)):
                box.closed = True
                await self._sent.keep(box)
            return said
        finally:
            for box in filter(None, (self.own, self.stand_in)):
                box.closed = True
                box.drop()
            self._made.clear()
            beside = [reaching] if ahead is None else [reaching, ahead]
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._ahead.forget()
            if not self.own.settled.is_set():
                self.own.settle(published=False)

    async def _reaches_others(self) -> bool:
        """Does what we send arrive? If not, our senders are told early enough to turn to the backup: a beat gets
        through where a slice does not."""
        reaching = await self.touch.proven(self._left_s())
        if self.touch.dead:
            log.info("slice %d: nothing that we send arrives: its senders may turn to the backup", self.own.spec.index)
            self.own.settle(published=False)
        return reaching

    async def _run(self, publish: Publish, reaching: asyncio.Task[bool]) -> bytes | None:
        said = await self._early(publish, reaching)
        await self.own.wait(self._left_s())
        if said is None:
            if not await reaching:
                await self.touch.revived(self._left_s())
            if await self._cut_off():
                return None
            if self._left_s() > 0 or self.stand_in is None:
                said = await self._publish(await self._reduced(self.own), None, publish)
                if said is None:
                    return None
        if self.stand_in is not None:
            await self.stand_in.wait(self._left_s())
        output = await self._whole()
        if said is None or record_hash(encode_output(output.record)) != said:
            return await self._publish(output, said, publish) or said
        return said

    async def _early(self, publish: Publish, reaching: asyncio.Task[bool]) -> bytes | None:
        """Publish without those who are silent: the gathering need not wait for them. Not where it may be our own line
        that is. The hash that is on chain. What comes later is in the one write that the chain takes of us besides,
        at the cut-off.
        """
        if not await self.own.silence(self._left_s(), self._quiet_s):
            return None
        if not await reaching:
            return None
        missing = self.own.missing()
        if self.touch.missed(self.own.expected - set(missing)):
            return None
        if self.stand_in is not None and self.stand_in.wanted:
            await self.stand_in.silence(self._left_s(), self._quiet_s)
        if self._left_s() <= 0:
            return None
        log.info("slice %d: %d sender(s) are silent: reduced without them", self.own.spec.index, len(missing))
        return await self._publish(await self._whole(), None, publish)

    async def _whole(self) -> SliceOutput:
        """Our slice as far as it is here, naming the one that we reduce as a backup, if we do."""
        output, box = await self._reduced(self.own), self.stand_in
        if box is None or not (box.wanted or box.spec.index in self._made):
            return output
        log.info("slice %d: standing in for its reducer", box.spec.index)
        other = await self._keep(await self._reduced(box))
        return replace(output, record=replace(output.record, backup=other))

    async def _cut_off(self) -> bool:
        """At the cut-off, with nothing published, or once all is in: does our line seem to be dead?"""
        missing, delivered = self.own.missing(), frozenset[bytes]()
        if missing:
            log.info("slice %d: %d sender(s) incomplete at the cut-off", self.own.spec.index, len(missing))
        if not self.touch.dead:  # else what was delivered came before
            delivered = self.own.expected - set(missing)
        cut = (bool(missing) or self.touch.dead) and await self.touch.cut_off(delivered)
        if cut:
            log.warning("slice %d: our line is cut, it is left to the backup", self.own.spec.index)
        return cut

    async def _reduced(self, inbox: Inbox) -> SliceOutput:
        """What is in it by now."""
        index, held = inbox.spec.index, inbox.held
        if (made := self._made.get(index)) is not None and made[0] == held:
            return made[1]
        log.debug("round %d: reducing slice %d of %d senders", self.plan.round.index, index, len(inbox.works))
        chunks, works = {key: dict(found) for key, found in inbox.chunks.items()}, dict(inbox.works)
        reduce = self._reduce
        if inbox is self.own and self._honest:
            reduce = partial(reduce_slice, ready=await self._ahead.made())
        output = await asyncio.to_thread(reduce, self.plan, inbox.spec, chunks, works, self._manifest)
        self._made[index] = held, output
        return output

    async def _publish(self, output: SliceOutput, amends: bytes | None, publish: Publish) -> bytes | None:
        output_hash = await self._keep(output)
        published = await publish(output_hash, amends)
        if amends is None:
            self.own.settle(published=published)
        return output_hash if published else None

    async def _keep(self, output: SliceOutput) -> bytes:
        body = encode_output(output.record)
        signed = encode_signed(Signed(body, self._signer.sign(signing_message(body))))
        await self._slices.keep(self.plan, output, record_hash(body), signed)
        return record_hash(body)
