"""The story of a miner: train on assigned pages, commit, average with the others, take the outer step, again."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.codecs import INT8_CODEC
from distributed_training.averaging.contribution import Contribution, encode_contribution
from distributed_training.averaging.plan import RoundPlan, layout_of
from distributed_training.errors import ChainFault, LocalFault, NetworkFault, PeerFault
from distributed_training.merkle import digest, merkle_root
from distributed_training.roles.follower import Follower, RoundStart
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.service import MinerService, push_log
from distributed_training.roles.work import Worker, WorkResult, WorkTask
from distributed_training.types import Commitment, Role, Signed, StepRecord, WorkRecord
from distributed_training.wire import (
    decode_signed,
    encode_commitment,
    encode_log,
    encode_signed,
    encode_step,
    encode_work,
    record_hash,
    signing_message,
)

log = logging.getLogger(__name__)


class ExactStepsMissed(LocalFault):
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
        exact_steps: bool,
        reduces: bool = True,
    ) -> None:
        self._p, self._follower, self._worker, self._service = parts, follower, worker, service
        self._uid, self._exact, self._reduces = uid, exact_steps, reduces
        self._max_steps = min(steps_per_round or parts.manifest.inner.max_steps, parts.manifest.inner.max_steps)

    async def run_round(self) -> None:
        """One round, as in protocol section 3."""
        start = await self._follower.prepare()
        report = RoundReport(self._p, start.round)
        own = await self._train(start, report)
        plan = await self._follower.plan(start)
        report.phase("average")
        async with asyncio.TaskGroup() as tasks:
            if own is not None and self._is_committed(plan, own):
                tasks.create_task(self._push_logs(plan), name="push logs")
                tasks.create_task(self._reduce(plan, own), name="scatter and reduce")
            gathering = tasks.create_task(self._p.butterfly.gather(plan, plan.round.map_block), name="gather")
        report.averaged()
        report.phase("settle")
        settled = await self._follower.settle(plan, gathering.result())
        report.settled(plan, settled.outcome, self._follower.root)

    def _is_committed(self, plan: RoundPlan, own: OwnWork) -> bool:
        """The chain names exactly this work of ours; after a restart or a late write it may name another, or none."""
        me = plan.candidate(self._p.signer.public_key)
        return me is not None and me.record_hash == record_hash(decode_signed(own.signed).body)

    # --- train and commit -------------------------------------------------------------------------

    async def _train(self, start: RoundStart, report: RoundReport) -> OwnWork | None:
        """Train until s+D-M, then commit the record's hash. None when this round has to be sat out."""
        p, round_ = self._p, start.round
        await p.clock.reached(round_.start_block)
        me = start.roster.by_public_key(p.signer.public_key)
        registered = me is not None and me.commitment is not None
        if not registered or not self._follower.trusted or p.clock.head >= round_.train_end_block:
            log.info("sitting out round %d: it began without us", round_.index)
            return None
        report.phase("train")
        result = await self._work(start, report)
        if self._exact and len(result.steps) != self._max_steps:
            raise ExactStepsMissed(
                f"round {round_.index}: {len(result.steps)} steps done, exactly {self._max_steps} asked for"
            )
        if not result.steps:
            log.warning("round %d: no step was done, nothing to commit (%s)", round_.index, result.fault or "no time")
            return None
        report.trained(result.steps, len(result.steps) * p.manifest.tokens_per_step)
        report.phase("commit")
        return await self._commit(start, result)

    async def _work(self, start: RoundStart, report: RoundReport) -> WorkResult:
        p, loop = self._p, asyncio.get_running_loop()
        began, tokens = loop.time(), p.manifest.tokens_per_step

        def on_step(step: StepRecord, seconds: float) -> None:
            loss = sum(step.losses) / len(step.losses)
            rate = tokens / max(seconds, 1e-9)
            loop.call_soon_threadsafe(report.step, step.step, loss, rate)

        task = WorkTask(
            round=start.round.index,
            uid=self._uid,
            beacon=start.beacon,
            state=self._follower.state,
            max_steps=self._max_steps,
            should_stop=lambda: p.training.stopping or p.clock.head >= start.round.train_end_block,
            on_step=on_step,
        )
        result = await p.training.run(lambda: self._worker.work(task))
        if result.fault is not None:
            p.metrics.emit("fault", round=start.round.index, what="data", detail=str(result.fault))
        log.info("round %d: %d steps in %.1f s", task.round, len(result.steps), loop.time() - began)
        return result

    async def _commit(self, start: RoundStart, result: WorkResult) -> OwnWork | None:
        p = self._p
        if not np.isfinite(result.delta).all():
            log.error("round %d: training diverged, nothing is committed", start.round.index)
            return None
        layout = layout_of(p.manifest, len(result.delta))
        contribution = await asyncio.to_thread(encode_contribution, result.delta, layout)
        record = self._record(start, result, contribution)
        body = encode_work(record)
        signed = encode_signed(Signed(body, p.signer.sign(signing_message(body))))
        steps_log = encode_log(result.steps)
        p.store.put_work(record.round, record_hash(body), signed)
        p.store.put_own(record.round, b"".join(contribution.chunks), steps_log)
        own = OwnWork(contribution, signed)
        self._service.hold(record, own, steps_log)
        try:
            block = await p.chain.commit(encode_commitment(self._commitment(record.round, record_hash(body))))
        except ChainFault as error:
            log.error("round %d: the work hash was not committed, as far as we know: %s", record.round, error)
            return own
        if block > start.round.commit_block:
            log.warning("round %d: committed in block %d, too late", record.round, block)
        return own

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
            first_round=round_index,
            first=work,
            second_round=None if output is None else round_index,
            second=output,
        )

    # --- average -----------------------------------------------------------------------------------

    async def _reduce(self, plan: RoundPlan, own: OwnWork) -> None:
        """Send to every reducer, reduce our own slice if we have one, and put its output hash on chain."""
        reduced = await self._p.butterfly.contribute(plan, own)
        ourselves = plan.candidate(self._p.signer.public_key)
        if reduced is None or ourselves is None:
            return
        commitment = self._commitment(plan.round.index, ourselves.record_hash, reduced[1])
        try:
            block = await self._p.chain.commit(encode_commitment(commitment))
        except ChainFault as error:
            log.error("round %d: the output hash could not be committed: %s", plan.round.index, error)
            return
        if block > plan.round.output_block:
            log.warning("round %d: output committed in block %d, too late", plan.round.index, block)

    async def _push_logs(self, plan: RoundPlan) -> None:
        validators = [
            n
            for n in plan.roster.neurons
            if n.may_validate and n.commitment is not None and n.commitment.role is Role.VALIDATOR
        ]
        await asyncio.gather(*(self._push_log(plan, n.commitment.peer_key) for n in validators if n.commitment))

    async def _push_log(self, plan: RoundPlan, peer_key: bytes) -> None:
        held = self._service.held(plan.round.index)
        while held is not None and (left_s := self._p.clock.seconds_until(plan.round.output_block)) > 0:
            try:
                await push_log(self._p.peers, peer_key, plan.round.index, held.own.signed, held.log, left_s)
                return
            except (NetworkFault, PeerFault) as error:
                log.info("pushing the log to %s failed: %s", peer_key.hex()[:12], error)
                await asyncio.sleep(min(left_s, self._p.clock.block_s))
