"""The story of a miner: train on assigned pages, commit, average with the others, take the outer step, again."""

from __future__ import annotations

import asyncio
import logging

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.contribution import Contribution
from distributed_training.averaging.plan import RoundPlan
from distributed_training.protocol.rules.clock import bulk_timeout_s
from distributed_training.protocol.rules.membership import said
from distributed_training.protocol.types import NO_ROOT, Commitment, Role, Signed
from distributed_training.protocol.wire import (
    decode_signed,
    encode_log,
    encode_signed,
    encode_work,
    record_hash,
    signing_message,
)
from distributed_training.roles.began import BeganService
from distributed_training.roles.exchange import exchange
from distributed_training.roles.follower import Follower, RoundStart
from distributed_training.roles.mining.encoding import encoded, forget_feedback
from distributed_training.roles.mining.kept import (
    find_former,
    find_work,
    keep_work,
    promise_output,
    recall,
    worth_committing,
)
from distributed_training.roles.mining.record import work_record
from distributed_training.roles.mining.trainings import GaveUp, Trainings
from distributed_training.roles.mining.work import Worker, WorkResult
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.service import HeldWork, MinerService
from distributed_training.roles.trouble import commit_by

log = logging.getLogger(__name__)


class ExactStepsMissed(GaveUp):
    """`--exact-steps` was asked for and a round did not get them."""


class Miner:
    def __init__(
        self,
        parts: Parts,
        follower: Follower,
        worker: Worker,
        service: MinerService,
        *,
        uid: int,
        steps_per_round: int | None,
        exact_from: int | None = None,
        reduces: bool = True,
        train_ahead: bool = False,
        last_round: int | None = None,
    ) -> None:
        """exact_from: a round that begins at this block or later gets exactly its steps or ends the node, one before it
        is sat out. train_ahead: begin with a round's work as soon as its beacon is seen at the head. last_round: after
        which this node stops, so that with overlap it trains nothing beyond it."""
        self._p, self._follower, self._service, self._last_round = parts, follower, service, last_round
        self._uid, self._exact_from, self._reduces, self._train_ahead = uid, exact_from, reduces, train_ahead
        self._max_steps = min(steps_per_round or parts.manifest.inner.max_steps, parts.manifest.inner.max_steps)
        BeganService(service, parts.peers, bulk_timeout_s(parts.manifest.timing, parts.clock.block_s))
        self._trainings = Trainings(
            parts, follower, worker, uid=uid, max_steps=self._max_steps, train_ahead=train_ahead
        )

    async def run_round(self) -> None:
        """One round, as in protocol section 3. May be called again for a round that was broken off."""
        try:
            await self._round()
        except BaseException:
            self._trainings.close()  # of a round that is run again, too: its state may be another one then
            raise

    async def _round(self) -> None:
        p, round_ = self._p, self._p.manifest.round(self._follower.index)
        report = self._trainings.report(round_)
        await recall(p, self._follower, self._service)
        kept = await find_work(p, self._follower, self._service.held(round_.index))
        if kept is not None:
            self._trainings.close()
        elif self._train_ahead:
            await self._trainings.begin_early(round_, report)
        start = await self._follower.prepare()
        await self._trainings.going()
        own = await self._train(start, report) if kept is None else await self._take_up(start, kept)
        if own is None:
            self._trainings.end()

        async def average(plan: RoundPlan, final: asyncio.Event) -> dict[int, SliceOutput]:
            return await self._average(plan, own, report, final, resumed=kept is not None)

        plan, held = await exchange(p, self._follower, start, average)
        report.averaged()
        report.phase("settle")
        attending = asyncio.create_task(self._service.attend(plan), name="audit beacon")
        try:
            if own is None or not self._is_committed(plan, own):
                await self._trainings.forsake()
            await self._trainings.ready_to_settle()
            settled = await self._follower.settle(plan, held)
        finally:
            attending.cancel()
        self._trainings.settled(self._follower.state)
        self._service.put_away()
        report.settled(plan, settled.outcome, self._follower.root)

    async def finish(self) -> None:
        """Wait until the voters of the last round have asked what they ask, no longer than until the next one starts,
        or with overlap is committed: who is away then loses the credit of the one or steps of the other."""
        self._trainings.close()
        p, last = self._p, self._p.manifest.round(max(0, self._follower.index - 1))
        leave = p.manifest.round(self._follower.index).commit_block if p.manifest.timing.overlap else last.end_block
        for block in range(p.clock.head + 1, leave + 1):
            if self._service.answered(last.index):
                return
            await p.clock.reached(block)

    async def _average(
        self, plan: RoundPlan, own: OwnWork | None, report: RoundReport, final: asyncio.Event, *, resumed: bool
    ) -> dict[int, SliceOutput]:
        """The exchange under one plan. resumed: chunks may have been lost with the process that had received them."""
        p = self._p
        report.phase("average")
        if own is not None:  # who asks while slices are still fetched is told to wait, not that it is no voter
            self._service.recall(plan.round.index, plan.voters, plan.layout)
        async with asyncio.TaskGroup() as tasks:
            if own is not None and p.clock.head < plan.round.output_block and self._is_committed(plan, own):
                tasks.create_task(self._service.push_logs(plan), name="push logs")
                tasks.create_task(self._reduce(plan, own, final, resumed=resumed), name="scatter and reduce")
            gathering = tasks.create_task(p.butterfly.collector.gather(plan, plan.round.map_block), name="gather")
        return gathering.result()

    def _is_committed(self, plan: RoundPlan, own: OwnWork) -> bool:
        """The chain names exactly this work of ours; after a restart or a late write it may name another, or none."""
        me = plan.candidate(self._p.signer.public_key)
        return me is not None and me.record_hash == record_hash(decode_signed(own.signed).body)

    # --- train and commit -------------------------------------------------------------------------

    async def _train(self, start: RoundStart, report: RoundReport) -> OwnWork | None:
        """Train until s+D-M, then commit the record's hash. None when this round has to be sat out."""
        p, round_ = self._p, start.round
        me = start.roster.by_public_key(p.signer.public_key)
        registered = me is not None and said(me, start.roster, round_.run) is not None
        await self._trainings.keep_only(start, registered=registered)
        if not self._trainings.under_way:
            if not self._train_ahead:
                await p.clock.reached(round_.start_block)
            late = (self._exact_from or 0) > round_.start_block
            if late or not registered or not self._follower.trusted or p.clock.head >= round_.train_end_block:
                log.info("sitting out round %d: it began without us", round_.index)
                return None
            self._trainings.begin(round_, start.beacon, report)
        result = await self._trainings.result(start, report)
        if self._exact_from is not None and (result is None or len(result.steps) != self._max_steps):
            done = 0 if result is None else len(result.steps)
            raise ExactStepsMissed(f"round {round_.index}: {done} steps done, exactly {self._max_steps} asked for")
        if result is None or not result.steps:
            fault = None if result is None else result.fault
            log.warning("round %d: no step was done, nothing to commit (%s)", round_.index, fault or "no time")
            return None
        report.trained(result.steps, len(result.steps) * p.manifest.tokens_per_step, result.stall_s)
        await p.clock.reached(round_.start_block)  # a commitment counts from the round's first block on
        report.phase("commit")
        return await self._commit(start, result)

    async def _commit(self, start: RoundStart, result: WorkResult) -> OwnWork | None:
        p, carry = self._p, self._follower.state.carry
        try:
            made = await encoded(p, start.round.index, carry, result.delta)
        except ValueError:  # a number that is not finite
            log.error("round %d: training diverged, nothing is committed", start.round.index)
            return None
        began_at = self._trainings.began_at
        self._train_on(start.round.index, made.contribution)
        record = work_record(p, self._uid, start.round.index, self._follower.root, result, made, began_at)
        body = encode_work(record)
        own = OwnWork(made.contribution, encode_signed(Signed(body, p.signer.sign(signing_message(body)))))
        held = HeldWork(record, own, encode_log(result.page_digests, result.steps))
        await keep_work(p, held)
        await forget_feedback(p, start.round.index, carry)
        chunks = made.contribution.chunks
        count, size = len(chunks), sum(map(len, chunks))
        log.debug("round %d: work encoded in %d chunks, %d bytes", start.round.index, count, size)
        self._service.hold(held)
        await self._commit_work(start, record_hash(body))
        return own

    def _train_on(self, index: int, contribution: Contribution) -> None:
        """Overlap: the next round's training begins while this round is committed and averaged."""
        if self._p.manifest.timing.overlap and index != self._last_round:
            self._trainings.go_on(index, contribution)
        else:
            self._trainings.end()

    async def _commit_work(self, start: RoundStart, work: bytes) -> None:
        commitment = self._commitment(start.round.index, work)
        block = await commit_by(self._p, commitment, start.round.index, start.round.commit_block, "work hash")
        if block is not None and block > start.round.commit_block:
            log.warning("round %d: committed in block %d, too late", start.round.index, block)

    async def _take_up(self, start: RoundStart, kept: HeldWork) -> OwnWork:
        """Go on with work that was done before this process, or this attempt at the round, began."""
        p, work = self._p, record_hash(decode_signed(kept.own.signed).body)
        log.info("round %d: going on with the work we kept", start.round.index)
        await self._hold_former(kept, start.round.index - 1)
        self._service.hold(kept)
        self._train_on(start.round.index, kept.own.contribution)
        await p.clock.reached(start.round.start_block)
        me = (await p.chain.roster(p.clock.head)).by_public_key(p.signer.public_key)
        commitment = None if me is None else me.commitment
        named = commitment is not None and (commitment.first_round, commitment.first) == (start.round.index, work)
        if not named and p.clock.head < start.round.commit_block:
            await self._commit_work(start, work)
        return kept.own

    async def _hold_former(self, kept: HeldWork, index: int) -> None:
        """What its training went on from has to be given with it, after a restart too."""
        if kept.record.began_at == NO_ROOT or self._service.held(index) is not None:
            return
        former = await find_former(self._p, index, len(self._follower.state.params))
        if former is not None:
            self._service.hold(former)

    def _commitment(self, round_index: int, work: bytes, output: bytes | None = None) -> Commitment:
        return Commitment(
            role=Role.MINER,
            reduces=self._reduces,
            peer_key=self._p.peer_key,
            run=self._p.manifest.tag,
            first_round=round_index,
            first=work,
            second_round=None if output is None else round_index,
            second=output,
        )

    # --- average -----------------------------------------------------------------------------------

    async def _reduce(self, plan: RoundPlan, own: OwnWork, final: asyncio.Event, *, resumed: bool) -> None:
        """Send to every reducer, reduce our own slice if we have one, and put its output hash on chain."""

        async def publish(output: bytes, amends: bytes | None) -> bool:
            await final.wait()
            return await self._publish(plan, output, amends, resumed=resumed)

        await self._p.butterfly.contribute(plan, own, publish)

    async def _publish(self, plan: RoundPlan, output: bytes, amends: bytes | None, *, resumed: bool) -> bool:
        """Put our output hash on chain. True: exactly this one is there by s+X.

        amends: our hash that it replaces, of the same slice, to name what we reduced as a backup.
        """
        p, ourselves = self._p, plan.candidate(self._p.signer.public_key)
        assert ourselves is not None, "who reduces is a candidate"
        promised = promise_output(p, plan.round.index, output, amends)
        if resumed and promised == output and not worth_committing(p, plan, output):
            log.warning("round %d: our slice lacks what was sent before we restarted", plan.round.index)
            return False
        commitment = self._commitment(plan.round.index, ourselves.record_hash, promised)
        block = await commit_by(p, commitment, plan.round.index, plan.round.output_block, "output hash")
        if block is not None and block > plan.round.output_block:
            log.warning("round %d: output committed in block %d, too late", plan.round.index, block)
        return promised == output and block is not None and block <= plan.round.output_block
