"""One node's part in the all-reduce: it answers its peers all the time and runs a round when told.

scatter (our chunks to each reducer) -> reduce (our slice, in fixed order) -> gather (every slice whose output hash
is on chain). Who is in, what counts and when it ends follow from the chain; a peer that dies costs its own part.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from distributed_training.averaging import scatter, wants
from distributed_training.averaging.collect import Collector
from distributed_training.averaging.gather import Slices
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.reducing import Publish, Reduce, Reduction, reduce_slice
from distributed_training.averaging.scatter import OwnWork as OwnWork
from distributed_training.averaging.sent import Sent
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.touch import Touch
from distributed_training.averaging.wants import Patience
from distributed_training.averaging.works import WorkBook
from distributed_training.chain.base import Chain, Signer, Verify
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault
from distributed_training.network.base import Stream
from distributed_training.network.newest import Newest
from distributed_training.network.peers import PeerBook
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.clock import bulk_timeout_s, stall_timeout_s
from distributed_training.protocol.rules.membership import backup_of
from distributed_training.protocol.types import SliceSpec

log = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 10.0


class Butterfly:
    def __init__(
        self,
        manifest: RunManifest,
        peers: PeerBook,
        store: RoundStore,
        chain: Chain,
        clock: BlockClock,
        signer: Signer,
        verify: Verify,
        reduce: Reduce = reduce_slice,
    ) -> None:
        self._reduce = reduce
        self._manifest, self._peers, self._clock, self._signer = manifest, peers, clock, signer
        self._stall_s = stall_timeout_s(manifest.timing, clock.block_s)
        patience = Patience(CONTROL_TIMEOUT_S, self._stall_s, bulk_timeout_s(manifest.timing, clock.block_s))
        self._works = WorkBook(manifest, verify, store)
        self.slices = Slices(manifest, peers, store, self._works, verify, patience)
        self.collector = Collector(self.slices, peers, chain, clock, signer.public_key)
        self.sent = Sent(manifest, peers, store, chain, clock, patience)
        self._reduction: Reduction | None = None
        self._tag = (-1, b"")  # its round and plan
        self._opened = asyncio.Condition()
        self._coming = Newest()  # slices, by whose they are
        peers.transport.serve(scatter.METHOD, self._on_scatter)
        peers.transport.serve(wants.METHOD, self.slices.giving.on_slice)

    # --- what we answer -----------------------------------------------------------------------------

    async def _on_scatter(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        round_index, slice_index, tag = scatter.parse_header(payload)
        reduction = await self._reduction_of(round_index, tag, stream)
        plan, inbox = reduction.plan, reduction.inbox_for(slice_index)
        candidate = plan.candidate(neuron.public_key)
        if candidate is None or inbox is None:
            raise PeerFault(f"uid {neuron.uid} may not send slice {slice_index} of round {round_index} here")
        left_s = max(1.0, self._left_s(plan))
        async with self._coming.only((neuron.public_key, slice_index)):
            await scatter.receive_slice(stream, candidate, inbox, self._works, self._stall_s, left_s)
        log.debug("round %d: slice %d of uid %d is in", round_index, slice_index, candidate.uid)
        if inbox is reduction.own:
            await scatter.report_until_done(stream, inbox, self._stall_s, lambda: self._left_s(plan))

    async def _reduction_of(self, round_index: int, tag: bytes, stream: Stream) -> Reduction:
        """The open round, divided as the sender has it. It may be ahead of us, or we of it, until s+D is final, so wait
        a little, and say that we are there."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + max(CONTROL_TIMEOUT_S, (self._manifest.timing.finality + 1) * self._clock.block_s)
        while not self._is_open(round_index, tag):
            if loop.time() >= give_up:
                raise PeerFault(f"round {round_index} is not open here, or has other candidates")
            try:
                async with asyncio.timeout(self._stall_s / scatter.BEATS_PER_STALL), self._opened:
                    await self._opened.wait()
            except TimeoutError:
                await scatter.beat(stream, self._stall_s)
        assert self._reduction is not None
        if self._reduction.plan.round.index != round_index:
            raise PeerFault(f"round {round_index} is over here")
        return self._reduction

    def _is_open(self, round_index: int, tag: bytes) -> bool:
        """Is it open under that plan, or over?"""
        plan = None if self._reduction is None else self._reduction.plan
        return plan is not None and (plan.round.index > round_index or self._tag == (round_index, tag))

    # --- scatter and reduce ---------------------------------------------------------------------------

    def _left_s(self, plan: RoundPlan) -> float:
        """Seconds until the cut-off s+X-R: nothing is sent or taken afterwards."""
        return self._clock.seconds_until(plan.round.output_block - self._manifest.timing.reduce_margin)

    async def contribute(self, plan: RoundPlan, own: OwnWork, publish: Publish) -> bytes | None:
        """Send our chunks to every reducer; reduce our own slice, and that of a reducer we stand in for.

        `publish` puts an output hash on chain. Returns the last one that is there; None: we reduced nothing. Sending
        ends by the cut-off s+X-R.
        """
        spec = plan.slice_of(self._signer.public_key)
        reduction = await self._open(plan, spec, own) if spec is not None else None
        async with asyncio.TaskGroup() as tasks:
            first = 0 if spec is None else spec.index  # everybody begins with another reducer
            for target in (*plan.slices[first:], *plan.slices[:first]):
                if target.reducer != self._signer.public_key:
                    tasks.create_task(self.send(plan, target, own, reduction), name=f"send slice {target.index}")
            reduced = tasks.create_task(reduction.run(publish), name="reduce") if reduction is not None else None
        return None if reduced is None else reduced.result()

    async def _open(self, plan: RoundPlan, spec: SliceSpec, own: OwnWork) -> Reduction:
        decide_block = plan.round.output_block - max(1, self._manifest.timing.reduce_margin // 2)
        touch = Touch(plan, spec, decide_block, self.slices, self.collector, self._clock)
        left_s = partial(self._left_s, plan)
        # A beat longer than it takes to notice that our own line is dead: then everybody seems silent.
        quiet_s = self._stall_s * (1 + 1 / scatter.BEATS_PER_STALL)
        reduction = Reduction(
            plan, spec, self._manifest, self.slices, self._signer, left_s, quiet_s, touch, self.sent, self._reduce
        )  # fmt: skip
        ourselves = plan.candidate(self._signer.public_key)
        if ourselves is not None:
            work = self._works.take(plan, ourselves, own.signed)
            await reduction.put_own(ourselves.public_key, work, own.contribution.chunks)
        async with self._opened:
            self._reduction, self._tag = reduction, (plan.round.index, plan.tag)
            self._opened.notify_all()
        return reduction

    async def send(self, plan: RoundPlan, spec: SliceSpec, own: OwnWork, reduction: Reduction | None) -> None:
        """Until the reducer's output is on chain, or the cut-off. Its backup gets our chunks when it seems lost. Who is
        lost after it took them gets them once more: its head may have changed, and changed back (`roles/exchange.py`).
        """
        ours = None if reduction is None else reduction.needs_us(spec.index)
        taken = backed_up = again = False
        to_reducer = f"round {plan.round.index}: slice {spec.index} to its reducer {spec.reducer.hex()[:12]}"
        to_backup = f"round {plan.round.index}: slice {spec.index} to its backup"
        reducer_tries = Ongoing(log, to_reducer, f"{to_reducer}: taken", logging.DEBUG)
        backup_tries = Ongoing(log, to_backup, f"{to_backup}: taken", logging.DEBUG)
        while not (taken and backed_up) and (left_s := self._left_s(plan)) > 0:
            try:
                if not taken:
                    sent = None if reduction is None else partial(reduction.touch.sent, spec.reducer)
                    stream = await self._deliver(plan, spec, spec.reducer, own, sent)
                    taken = True
                    reducer_tries.end()
                    if reduction is not None:
                        reduction.touch.took(spec.reducer)
                    done = await scatter.until_done(stream, self._stall_s, lambda: self._left_s(plan))
                    if done and ours is not None:
                        ours.spare()
                    return
            except (NetworkFault, PeerFault) as error:
                reducer_tries.begin(error)
                if reduction is not None and taken:
                    reduction.touch.lost(spec.reducer)
                elif reduction is not None and (
                    isinstance(error, scatter.NotSent) or not isinstance(error, DeadlineMissed)
                ):  # what only is not acknowledged in time may be slow
                    reduction.touch.failed(spec.reducer)
                taken, again = taken and again, again or taken
            backed_up = backed_up or await self._back_up(plan, spec, own, ours, backup_tries)
            await asyncio.sleep(min(left_s, self._clock.block_s / 2))

    async def _back_up(
        self, plan: RoundPlan, spec: SliceSpec, own: OwnWork, ours: Inbox | None, tries: Ongoing
    ) -> bool:
        """Our chunks to the reducer that stands in. True: it has them, or there is none."""
        backup = backup_of(plan.slices, spec.index)
        if ours is not None:
            ours.need()
        if ours is not None or backup is None:
            return True
        try:
            stream = await self._deliver(plan, spec, backup.reducer, own)
        except (NetworkFault, PeerFault) as error:
            tries.begin(f"{backup.reducer.hex()[:12]}: {error}")
            return False
        tries.end()
        await stream.close()
        return True

    async def _deliver(
        self, plan: RoundPlan, spec: SliceSpec, reducer: bytes, own: OwnWork, sent: Callable[[], None] | None = None
    ) -> Stream:
        target, left_s = plan.candidate(reducer), max(0.05, self._left_s(plan))
        assert target is not None, "reducers are candidates"
        stream = await scatter.send_slice(self._peers, target, spec, plan, own, self._stall_s, left_s, sent)
        count = spec.last_chunk - spec.first_chunk
        log.debug("round %d: slice %d, %d chunks, sent to uid %d", plan.round.index, spec.index, count, target.uid)
        return stream
