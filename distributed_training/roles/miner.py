"""The story of a miner: train on assigned pages, commit, average with the others, take the outer step, again."""

from __future__ import annotations

import asyncio
import logging

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.codecs.int8 import INT8_CODEC
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.averaging.plan import RoundPlan, layout_of
from distributed_training.errors import DeviceLost, LocalFault, OutOfMemory, named
from distributed_training.metrics.events import Ahead
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.rules.membership import said
from distributed_training.protocol.types import Commitment, Role, Round, Signed, StepRecord, WorkRecord
from distributed_training.protocol.wire import (
    decode_signed,
    encode_log,
    encode_signed,
    encode_step,
    encode_work,
    record_hash,
    signing_message,
)
from distributed_training.roles.follower import Follower, RoundStart
from distributed_training.roles.mining.ahead import Training, guessed_beacon
from distributed_training.roles.mining.kept import find_work, keep_work, promise_output, worth_committing
from distributed_training.roles.mining.work import Worker, WorkResult
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.service import HeldWork, MinerService
from distributed_training.roles.trouble import commit_by, tell

log = logging.getLogger(__name__)

MAX_FAILURES = 3


class GaveUp(LocalFault):
    """This node's own trouble does not end: the message says which."""


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
    ) -> None:
        """exact_from: a round that begins at this block or later gets exactly its steps or ends the node, one before it
        is sat out. train_ahead: begin with a round's work as soon as its beacon is seen at the head."""
        self._p, self._follower, self._worker, self._service = parts, follower, worker, service
        self._uid, self._exact_from, self._reduces, self._train_ahead = uid, exact_from, reduces, train_ahead
        self._max_steps = min(steps_per_round or parts.manifest.inner.max_steps, parts.manifest.inner.max_steps)
        self._training: Training | None = None
        self._failures = 0  # rounds in a row in which the worker failed

    async def run_round(self) -> None:
        """One round, as in protocol section 3. May be called again for a round that was broken off."""
        p, round_ = self._p, self._p.manifest.round(self._follower.index)
        report = RoundReport(p, round_)
        kept = await find_work(p, self._follower, self._service.held(round_.index))
        try:
            if kept is None and self._train_ahead:
                await self._begin_early(round_, report)
            start = await self._follower.prepare()
            own = await self._train(start, report) if kept is None else await self._take_up(start, kept)
        finally:
            if self._training is not None:
                self._training.close()
                self._training = None
        plan = await self._follower.plan(start)
        attending = asyncio.create_task(self._service.attend(plan), name="audit beacon")
        try:
            await self._average(plan, own, report, resumed=kept is not None)
        finally:
            attending.cancel()

    async def finish(self) -> None:
        """Wait until the voters of the last round have asked what they ask, no longer than until the next one starts:
        who is away then loses the credit of the one or steps of the other."""
        last = self._p.manifest.round(max(0, self._follower.index - 1))
        for block in range(self._p.clock.head + 1, last.end_block + 1):
            if self._service.answered(last.index):
                return
            await self._p.clock.reached(block)

    async def _average(self, plan: RoundPlan, own: OwnWork | None, report: RoundReport, *, resumed: bool) -> None:
        """Exchange and settle. resumed: chunks may have been lost with the process that had received them."""
        p = self._p
        report.phase("average")
        async with asyncio.TaskGroup() as tasks:
            if own is not None and p.clock.head < plan.round.output_block and self._is_committed(plan, own):
                tasks.create_task(self._service.push_logs(plan), name="push logs")
                tasks.create_task(self._reduce(plan, own, resumed=resumed), name="scatter and reduce")
            gathering = tasks.create_task(p.butterfly.collector.gather(plan, plan.round.map_block), name="gather")
        report.averaged()
        report.phase("settle")
        settled = await self._follower.settle(plan, gathering.result())
        self._service.put_away()
        report.settled(plan, settled.outcome, self._follower.root)

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
        if self._training is not None and not (registered and self._training.beacon == start.beacon):
            lost = await self._training.drop()
            p.metrics.emit(Ahead(steps_lost=lost), round=round_.index)
            self._training = None
        if self._training is None:
            if not self._train_ahead:
                await p.clock.reached(round_.start_block)
            late = (self._exact_from or 0) > round_.start_block
            if late or not registered or not self._follower.trusted or p.clock.head >= round_.train_end_block:
                log.info("sitting out round %d: it began without us", round_.index)
                return None
            self._begin(round_, start.beacon, report)
        result = await self._worked(start, report)
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

    async def _begin_early(self, round_: Round, report: RoundReport) -> None:
        """Start before s-B is final, on the guess that it will be what the head says."""
        beacon = await guessed_beacon(self._p, round_)
        if beacon is not None and self._follower.trusted:
            self._begin(round_, beacon, report)

    def _begin(self, round_: Round, beacon: bytes, report: RoundReport) -> None:
        p, tokens = self._p, self._p.manifest.tokens_per_step
        report.phase("train")

        def on_step(step: StepRecord, seconds: float) -> None:
            report.step(step.step, sum(step.losses) / len(step.losses), tokens / max(seconds, 1e-9))

        self._training = Training(
            p,
            self._worker,
            round_,
            beacon,
            self._follower.state,
            uid=self._uid,
            max_steps=self._max_steps,
            on_step=on_step,
        )

    async def _worked(self, start: RoundStart, report: RoundReport) -> WorkResult | None:
        """The training's result. None: the worker failed, which was said; several rounds in a row end the node."""
        p, index = self._p, start.round.index
        while self._training is not None:
            try:
                result = await self._training.result()
            except OutOfMemory as error:
                tell(p, index, "memory", error)
                if error.retry and p.clock.head < start.round.train_end_block:
                    self._begin(start.round, start.beacon, report)
                    continue
                return self._failed(index, error)
            except DeviceLost as error:
                tell(p, index, "device", error)
                raise
            except Exception as error:  # whatever a worker raises: it is ours, and a round can be sat out
                tell(p, index, "worker", error)
                return self._failed(index, error)
            self._failures = 0
            if result.fault is not None:
                tell(p, index, "data", result.fault)
            return result
        return None

    def _failed(self, index: int, error: Exception) -> None:
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise GaveUp(
                f"the worker failed in {self._failures} rounds in a row, last in round {index}: {named(error)}"
            ) from error
        log.info("sitting out round %d", index)

    async def _commit(self, start: RoundStart, result: WorkResult) -> OwnWork | None:
        p, layout = self._p, layout_of(self._p.manifest, len(result.delta))
        try:
            contribution = await asyncio.to_thread(encode_contribution, result.delta, layout)
        except ValueError:  # a number that is not finite
            log.error("round %d: training diverged, nothing is committed", start.round.index)
            return None
        record = self._record(start, result, contribution)
        body = encode_work(record)
        own = OwnWork(contribution, encode_signed(Signed(body, p.signer.sign(signing_message(body)))))
        held = HeldWork(record, own, encode_log(result.page_digests, result.steps))
        await keep_work(p, held)
        count, size = len(contribution.chunks), sum(map(len, contribution.chunks))
        log.debug("round %d: work encoded in %d chunks, %d bytes", start.round.index, count, size)
        self._service.hold(held)
        await self._commit_work(start, record_hash(body))
        return own

    async def _commit_work(self, start: RoundStart, work: bytes) -> None:
        commitment = self._commitment(start.round.index, work)
        block = await commit_by(self._p, commitment, start.round.index, start.round.commit_block, "work hash")
        if block is not None and block > start.round.commit_block:
            log.warning("round %d: committed in block %d, too late", start.round.index, block)

    async def _take_up(self, start: RoundStart, kept: HeldWork) -> OwnWork:
        """Go on with work that was done before this process, or this attempt at the round, began."""
        p, work = self._p, record_hash(decode_signed(kept.own.signed).body)
        log.info("round %d: going on with the work we kept", start.round.index)
        self._service.hold(kept)
        await p.clock.reached(start.round.start_block)
        me = (await p.chain.roster(p.clock.head)).by_public_key(p.signer.public_key)
        commitment = None if me is None else me.commitment
        named = commitment is not None and (commitment.first_round, commitment.first) == (start.round.index, work)
        if not named and p.clock.head < start.round.commit_block:
            await self._commit_work(start, work)
        return kept.own

    def _record(self, start: RoundStart, result: WorkResult, contribution: Contribution) -> WorkRecord:
        p = self._p
        return WorkRecord(
            manifest=p.manifest.digest,
            round=start.round.index,
            uid=self._uid,
            public_key=p.signer.public_key,
            state_root=self._follower.root,
            steps=len(result.steps),
            tokens=len(result.steps) * p.manifest.tokens_per_step,
            pages_root=merkle_root(result.page_digests),
            log_root=merkle_root([digest(encode_step(s)) for s in result.steps]),
            wire_root=contribution.wire_root,
            codec=INT8_CODEC,
            chunk_norms=contribution.norms,
        )

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

    async def _reduce(self, plan: RoundPlan, own: OwnWork, *, resumed: bool) -> None:
        """Send to every reducer, reduce our own slice if we have one, and put its output hash on chain."""

        async def publish(output: bytes, amends: bytes | None) -> bool:
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
