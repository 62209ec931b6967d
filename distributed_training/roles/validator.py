"""The story of a validator: follow every round, say on chain what it holds, audit, score, set weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

from distributed_training.averaging.collect import Early
from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import DeviceLost, LocalFault, WireError
from distributed_training.protocol.rules import membership
from distributed_training.protocol.types import Commitment, Role, Round, WorkRecord
from distributed_training.protocol.wire import decode_signed
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.auditing.examiner import Examiner
from distributed_training.roles.auditing.logs import PushedLog
from distributed_training.roles.auditing.looking import FinishedRound
from distributed_training.roles.auditing.permit import PermitWatch
from distributed_training.roles.auditing.starts import Former
from distributed_training.roles.exchange import exchange
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.service import LogService
from distributed_training.roles.sharing import SharedStates
from distributed_training.roles.trouble import commit_by, tell
from distributed_training.training.outer import RunState, Vector

log = logging.getLogger(__name__)


class Validator:
    def __init__(
        self,
        parts: Parts,
        follower: Follower,
        examiner: Examiner,
        logs: LogService,
        evaluator: Evaluator,
        *,
        last_round: int | None,
        shared: SharedStates | None = None,
    ) -> None:
        """last_round: the round after which everybody stops, so that nobody is left to answer its audits."""
        self._p, self._follower = parts, follower
        self._logs, self.evaluator, self._last_round = logs, evaluator, last_round
        self._examiner, self._shared = examiner, shared
        self._permit = PermitWatch(parts.manifest)
        self._audits: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None  # the same, once it only answers other validators
        self._former: Former | None = None  # overlap: the round before the one that is followed
        self._began: int | None = None  # the head when this process began with its first round

    async def run_round(self) -> None:
        """One round, as in protocol section 3; the former round's audits run beside it."""
        start = await self._follower.prepare()
        self._permit.saw(start.round.index, start.roster, self._p.signer.public_key)
        self._began = self._p.clock.head if self._began is None else self._began
        self._examiner.weights.begin()
        report = RoundReport(self._p, start.round)
        await self._p.clock.reached(start.round.start_block)
        report.phase("train")
        listened = False

        async def gather(plan: RoundPlan, final: asyncio.Event) -> dict[int, SliceOutput]:
            nonlocal listened
            listened = self._p.clock.head <= plan.round.output_block
            await self._logs.open_round(plan)
            self._examiner.accusations.open_round(plan)
            listened = listened or bool(self._logs.logs())  # by a former process of ours
            report.phase("average")
            return await self._gather(plan, final)

        plan, held = await exchange(self._p, self._follower, start, gather)
        report.averaged()
        report.phase("map")
        if await self._may_speak(plan, held):
            await self._commit_map(plan, held, plan.round.map_block)
        params, applied = self._follower.state.params, self._follower.state.applied
        await self._p.clock.final(plan.round.map_block)
        logs = self._logs.logs()
        report.phase("settle")
        await self._answered()
        settled = await self._follower.settle(plan, held, keep_params=True, lacking=partial(self._lacking, plan))
        works = {**settled.works, **self._pushed_works(plan, logs)}
        report.settled(plan, settled.outcome, self._follower.root, _tokens(plan, works))
        former = self._then(plan, params, applied, works)
        if not await self._free(plan):
            log.warning("round %d is not audited: the former round's audits are still under way", plan.round.index)
            return
        due = plan.round.index > self._examiner.last_scored and plan.round.index != self._last_round
        there = self._was_there(plan)
        finished = FinishedRound(plan, params, applied, settled.outcome, works, logs, there, former)
        audited = finished if settled.outcome.applied and listened and due else None
        self._audits = asyncio.create_task(self._look_back(plan, self._follower.state, audited), name="audits")

    def _then(self, plan: RoundPlan, params: Vector, applied: int, works: Mapping[bytes, WorkRecord]) -> Former | None:
        """The round before this one, if we followed it; from now on this one is the former, audited or not."""
        former = self._former
        self._former = Former(plan, params, applied, works) if self._p.manifest.timing.overlap else None
        return former if former is not None and former.plan.round.index + 1 == plan.round.index else None

    async def _free(self, plan: RoundPlan) -> bool:
        """True when the former audits have ended. Waits no longer than the next round's averaging can bear."""
        if self._audits is None:
            return True
        next_commit = plan.round.commit_block + self._p.manifest.timing.length
        await asyncio.wait({self._audits}, timeout=self._p.clock.seconds_until(next_commit))
        if not self._audits.done():
            return False
        await self._audited()
        return True

    async def _answered(self) -> None:
        """Other validators' words on the former round are no longer waited for: its parameters' memory is needed."""
        self._examiner.close()
        if self._answering is not None:
            await asyncio.wait({self._answering})

    async def _look_back(self, plan: RoundPlan, state: RunState, audited: FinishedRound | None) -> None:
        """After a round: evaluate the new state, then audit. Our own trouble costs observations, not the node, but for
        a GPU that failed: another process may use it."""
        try:
            await self.evaluator.evaluate(state, plan.round.index)
            if audited is not None:
                beacon = await self._examiner.examine(audited)
                if self._shared is not None:
                    self._shared.begin(plan, beacon)
                self._answering = asyncio.current_task()
                await self._examiner.answer(audited)
                self._give_back(audited)
        except DeviceLost as error:
            tell(self._p, plan.round.index, "device", error)
            raise
        except Exception as error:  # whatever it is: ours, and the next round can do without it
            tell(self._p, plan.round.index, "audit", error)
        finally:
            self._answering = None

    def _give_back(self, audited: FinishedRound) -> None:
        """The parameters that no later audit needs: with overlap those of the round before."""
        if not self._p.manifest.timing.overlap:
            self._follower.give_back(audited.params)
        elif audited.former is not None and audited.former.params is not audited.params:
            self._follower.give_back(audited.former.params)

    async def finish(self) -> None:
        """Wait for the audits under way, and a while for the look at what a miner publishes."""
        await self._audited()
        if self._shared is not None:
            await self._shared.finish()

    async def _audited(self) -> None:
        """Scores are folded once per round, in order."""
        self._examiner.close()
        if self._audits is not None:
            await self._audits
            self._audits = None

    async def cancel(self) -> None:
        """Leave no task behind; half an audit is no observation. Idempotent."""
        if self._audits is not None:
            self._audits.cancel()
            await asyncio.gather(self._audits, return_exceptions=True)
            self._audits = None
        await self._examiner.cancel()
        if self._shared is not None:
            await self._shared.cancel()

    def _was_there(self, plan: RoundPlan) -> bool:
        """From s+D on, in this process and without standing still."""
        assert self._began is not None
        return plan.round.commit_block >= max(self._began, self._p.clock.resumed_at)

    async def _may_speak(self, plan: RoundPlan, held: Mapping[int, SliceOutput]) -> bool:
        """Not if what we lack may be our own trouble: a clear bit of ours speaks against a slice that others hold."""
        wanted = await self._p.butterfly.collector.wanted(plan, plan.round.output_block)
        if len(held) == len(wanted) or (held and self._was_there(plan)):
            return True
        detail = f"{len(held)} of {len(wanted)} slices reached us in time: no map, so that it speaks against nobody's"
        tell(self._p, plan.round.index, "map", LocalFault(detail))
        return False

    async def _gather(self, plan: RoundPlan, final: asyncio.Event) -> dict[int, SliceOutput]:
        """Slices until two blocks before s+Y, and maps of them: at once when all that the head has of s+X are here;
        again if finality decides otherwise, or first at s+X+transfer if some lack. With the last one three at most.

        The one at s+X+transfer stands if the last is not included in time: who withholds a slice must not silence us.
        """
        t = self._p.manifest.timing

        async def show(held: Mapping[int, SliceOutput]) -> None:
            await final.wait()
            if held and self._was_there(plan):
                await self._commit_map(plan, held, plan.round.map_block)

        early = Early(plan.round.output_block + max(t.transfer, t.finality), show)
        return await self._p.butterfly.collector.gather(plan, plan.round.map_block - 2, early)

    async def _lacking(self, plan: RoundPlan, held: Mapping[int, SliceOutput], now: Round) -> None:
        """A counted slice does not come: if it comes to nobody, the others must learn that we lack it too."""
        await self._commit_map(plan, held, now.map_block, since=now.output_block)

    async def _commit_map(
        self, plan: RoundPlan, held: Mapping[int, SliceOutput], last_block: int, *, since: int = 0
    ) -> None:
        """By `last_block`; one that stands there from before `since` is written again."""
        p, round_index = self._p, plan.round.index
        if p.clock.head >= last_block:
            return
        commitment = Commitment(
            role=Role.VALIDATOR,
            reduces=False,
            peer_key=p.peer_key,
            run=p.manifest.tag,
            first_round=round_index,
            first=self._follower.root,
            second_round=round_index,
            second=membership.encode_slice_map([j in held for j in range(len(plan.slices))]),
        )
        block = await commit_by(p, commitment, round_index, last_block, "slice map", since=since)
        if block is not None and block > last_block:
            log.warning("round %d: slice map committed in block %d, too late", round_index, block)

    def _pushed_works(self, plan: RoundPlan, logs: Mapping[bytes, PushedLog]) -> dict[bytes, WorkRecord]:
        """Valid work records that came with the logs: a miner whose slices were lost can be audited too."""
        found: dict[bytes, WorkRecord] = {}
        for key, pushed in logs.items():
            candidate = plan.candidate(key)
            if candidate is None:
                continue
            try:
                signed = decode_signed(pushed.signed_record)
                found[key] = check_work(signed, candidate, plan, self._p.manifest, self._p.verify)
            except WireError as error:
                log.warning("uid %d pushed an invalid record: %s", candidate.uid, error)
        return found


def _tokens(plan: RoundPlan, works: Mapping[bytes, WorkRecord]) -> dict[int, int]:
    return {c.uid: works[c.public_key].tokens for c in plan.candidates if c.public_key in works}
