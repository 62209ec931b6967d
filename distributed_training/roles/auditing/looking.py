"""One validator's looks at all miners of a round: replays one after the other, probes beside them, and what other
validators say before anything of our own. Nothing about one miner ends or delays the look at another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import named
from distributed_training.metrics.events import Fault
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.audit_plan import SAMPLE, AuditTask, Depth, could_find, voter_share
from distributed_training.protocol.rules.clock import over
from distributed_training.protocol.rules.fidelity import VECTORS, scored
from distributed_training.protocol.types import NO_ROOT, Accusation, AverageOutcome, Candidate, WorkRecord
from distributed_training.roles.auditing.accusations import Accusations
from distributed_training.roles.auditing.audit import Auditor, Given, Job
from distributed_training.roles.auditing.buffers import NO_FEEDBACK
from distributed_training.roles.auditing.logs import AUDIT_ROUNDS, PushedLog
from distributed_training.roles.auditing.origins import Origins
from distributed_training.roles.auditing.probe import Probe, Prober
from distributed_training.roles.auditing.starts import Former
from distributed_training.roles.began import Origin
from distributed_training.roles.parts import Parts
from distributed_training.training.outer import Vector

log = logging.getLogger(__name__)

Late = Callable[[], bool]
Vectors = Mapping[bytes, asyncio.Task[Given]]  # by public key
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FinishedRound:
    """What the audit of a round needs after it was settled."""

    plan: RoundPlan
    params: Vector  # that the round started from
    applied: int  # rounds before it
    outcome: AverageOutcome
    works: Mapping[bytes, WorkRecord]
    logs: Mapping[bytes, PushedLog]
    heard_all: bool  # this process was there from s+D on: a log that it lacks was not lost with a former one
    former: Former | None = None  # overlap: the round before, if we followed it

    @property
    def missed(self) -> bool:
        """Does a log that is not here say anything about its miner? Not while none at all has reached us."""
        return self.heard_all and bool(self.logs)

    def log_of(self, public_key: bytes) -> PushedLog | None:
        """One block of grace after s+X: later, certainly once the beacon is out, a miner could fit its log to it."""
        pushed = self.logs.get(public_key)
        return None if pushed is None or pushed.block > self.plan.round.output_block + 1 else pushed


@dataclass(frozen=True, slots=True)
class Look:
    """What a validator saw of one miner before it judges."""

    candidate: Candidate
    task: AuditTask
    pushed: bool  # its log was here in time
    audit: AuditResult | None
    probe: Probe | None
    lacks: bool  # see `lacks`
    rootless: bool = False  # where its training began was asked for, and neither it nor others gave all of that


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of another validator's word. `condemned`: whom our own replay failed too, with its verdict."""

    condemned: tuple[Candidate, AuditResult] | None = None


def lacks(plan: RoundPlan, depth: Depth, given: Given | None, probe: Probe | None) -> bool:
    """Was a vector asked for, and neither its miner nor those it had sent it to gave enough of it? Where the codec
    keeps feedback, its miner alone has what makes a vector of the chunks, and is asked for that in every round. None:
    it was not asked for, or we did not come to the end of asking, for trouble of ours or of time."""
    if plan.uplink.feedback:
        return probe is not None and not probe.feedback.enough
    return given is not None and depth.full and not given.enough(plan)


class Looker:
    """Looks at rounds, one at a time."""

    def __init__(self, parts: Parts, auditor: Auditor, prober: Prober, accusations: Accusations) -> None:
        self._p, self._auditor, self._prober, self._accusations = parts, auditor, prober, accusations
        self._failed: dict[bytes, AuditResult] = {}  # hard fails of the round, by public key
        self._beacon = b""  # of the round
        self._origins = Origins(parts)

    async def look(self, done: FinishedRound, tasks: Sequence[AuditTask], beacon: bytes) -> list[Look]:
        """What is not looked at by the time that the round's parameters may be kept is no observation."""
        p, plan, index = self._p, done.plan, done.plan.round.index
        last_block = over(p.manifest.timing, index + AUDIT_ROUNDS - 1)
        heard = [task for task in tasks if done.log_of(task.public_key) is not None]
        self._tell_unfollowed(done, heard)
        self._failed, audits, unseen = {}, dict[bytes, AuditResult | None](), list[int]()
        self._beacon = beacon

        def late() -> bool:
            return p.clock.head >= last_block

        probes = self._prober.begin(done.plan, [(done.works[t.public_key], t.depth) for t in heard], beacon)
        vectors = {
            t.public_key: asyncio.create_task(self._vector(done, t, probes[t.public_key]), name="vector")
            for t in heard
            if t.depth.length
        }
        self._origins.begin(done, [t.public_key for t in heard if t.depth.length], late)
        try:
            waiting = sorted(heard, key=lambda task: task.depth.full)  # many chunks: by then they are here
            while waiting:
                while await self.answer(done, late) is not None:
                    pass
                task = await self._ready(waiting, probes | vectors | self._origins.tasks)
                waiting.remove(task)
                if late():
                    unseen.append(task.uid)
                elif task.public_key not in self._failed:
                    audits[task.public_key] = await self._audit(done, task, vectors, late)
                self._origins.looked_at(task.public_key)
            seen = {t.public_key: await self._ended(done, t.uid, probes[t.public_key], late) for t in heard}
            given = {t.public_key: await self._ended(done, t.uid, vectors.get(t.public_key), late) for t in heard}
        finally:
            for waiting in (*probes.values(), *vectors.values()):
                waiting.cancel()
            self._origins.close()
        self._auditor.unread.close(index)
        if unseen:
            log.warning("round %d: uids %s are not audited: the time for it is over", index, sorted(unseen))
        audits |= self._failed
        keys, refused = [(t.public_key, t.depth) for t in heard], self._origins.refused()
        lacking = {key for key, depth in keys if lacks(plan, depth, given.get(key), seen.get(key))}
        return [
            Look(candidate, task, key in seen, audits.get(key), seen.get(key), key in lacking, rootless=key in refused)
            for task in tasks
            if (candidate := plan.candidate(key := task.public_key)) is not None
        ]

    def _tell_unfollowed(self, done: FinishedRound, heard: Sequence[AuditTask]) -> None:
        """Overlap: nothing is replayed of who went on from a round that we missed. Our own trouble, told once."""
        uids = sorted(t.uid for t in heard if t.depth.length and done.works[t.public_key].began_at != NO_ROOT)
        if done.former is None and uids:
            index, said = done.plan.round.index, f"uids {uids} are not replayed: we missed the round they began in"
            log.warning("round %d: uids %s are not replayed: we missed the round they began in", index, uids)
            self._p.metrics.emit(Fault(what="audit", detail=said), round=index)

    async def answer(self, done: FinishedRound, late: Late) -> Answered | None:
        """Replay what another validator says has failed. None: nobody has said anything more."""
        plan, said = done.plan, self._accusations.next(done.plan.round.index)
        if said is None:
            return None
        candidate, record = plan.candidate(said.miner), done.works.get(said.miner)
        if candidate is None or record is None or said.miner in self._failed or late():
            return Answered()
        whole, audit = said.reason in VECTORS, self._p.manifest.audit
        share = voter_share(plan.voters, said.accuser)
        drawn = self._beacon, said.accuser, said.miner, record.steps, audit, share
        if not could_find(*drawn, said.steps, whole):  # it never looked: nothing is replayed for that
            return self._unfounded(done, said, candidate)
        depth = Depth(record.steps if whole else min(said.steps, record.steps), whole)
        task = AuditTask(candidate.uid, said.miner, depth, ())
        given = (await self._in_time(done, task.uid, self._vector(done, task), late) if whole else None) or Given({})
        if whole and not given.enough(plan):  # what it found we cannot look at: that speaks neither way
            return Answered()
        origin = await self._in_time(done, candidate.uid, self._origins.for_another(done, said.miner), late)
        result = await self._replayed(done, said.miner, depth, given, late, origin)
        verdict = None if result is None else scored(result, audit).verdict
        if result is not None and verdict is Verdict.FAIL:
            self._failed[said.miner] = result
            return Answered((candidate, result))
        fewer = whole and plan.uplink.feedback  # we were shown less of it than who drew a full audit
        return self._unfounded(done, said, candidate) if verdict is Verdict.PASS and not fewer else Answered()

    def _unfounded(self, done: FinishedRound, said: Accusation, candidate: Candidate) -> Answered:
        accuser = done.plan.roster.by_public_key(said.accuser)
        self._accusations.disbelieve(said)
        log.warning(
            "round %d: uid %s says that the log of uid %d fails (%s at step %d), and it does not: "
            "that validator is not listened to for a while",
            *(done.plan.round.index, "?" if accuser is None else accuser.uid, candidate.uid),
            *(said.reason, said.steps - 1),
        )
        return Answered()

    async def _in_time(self, done: FinishedRound, uid: int, work: Coroutine[Any, Any, T], late: Late) -> T | None:
        """What it gives, if it does before it is too late: who gives slowly holds up neither us nor our next round."""
        fetching = asyncio.create_task(work, name="for another")
        try:
            return await self._ended(done, uid, fetching, late)
        finally:
            fetching.cancel()

    async def _ready(self, waiting: Sequence[AuditTask], needed: Mapping[bytes, asyncio.Task[Any]]) -> AuditTask:
        """The most urgent one for which what it needs has ended. Everything has its deadline, so one does soon."""
        if not any(needed[task.public_key].done() for task in waiting):
            those = [needed[task.public_key] for task in waiting]
            await asyncio.wait(those, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in waiting if needed[task.public_key].done())

    async def _audit(self, done: FinishedRound, task: AuditTask, vectors: Vectors, late: Late) -> AuditResult | None:
        given = await self._ended(done, task.uid, vectors.get(task.public_key), late) or Given({})
        origin = self._origins.here(done, task.public_key)
        result = await self._replayed(done, task.public_key, task.depth, given, late, origin)
        if result is not None and scored(result, self._p.manifest.audit).verdict is Verdict.FAIL:
            self._failed[task.public_key] = result
            if result.reason in VECTORS:
                self._accusations.accuse(done.plan, task.public_key, task.depth.length, result.reason)
            elif result.failed_step is not None:  # what is wrong with a log's form everybody sees alone
                self._accusations.accuse(done.plan, task.public_key, result.failed_step + 1, result.reason)
        return result

    async def _vector(
        self, done: FinishedRound, task: AuditTask, probe: asyncio.Task[Probe | None] | None = None
    ) -> Given:
        """Of what it committed, all or a few chunks: what itself gives, the rest from the reducers it had sent it to.
        Who answers no probe, or leaves out a chunk, hides nothing by it; its feedback it has alone, but who hides that
        has no credit."""
        plan, work, candidate = done.plan, done.works[task.public_key], done.plan.candidate(task.public_key)
        given = None if probe is None else await asyncio.shield(probe)
        if probe is None and plan.uplink.feedback and candidate is not None:
            given = await self._prober.probe(plan, candidate, work, self._beacon, looked=True)
        chunks = {} if given is None else dict(given.chunks)
        feedback = NO_FEEDBACK if given is None else given.feedback
        wanted = range(plan.layout.num_chunks) if task.depth.full else task.chunks[:SAMPLE]
        lacking = [c for c in (sorted(feedback.kept) if plan.uplink.feedback else wanted) if c not in chunks]
        if lacking and candidate is not None:
            chunks |= await self._p.butterfly.sent.fetch(plan, candidate, work, lacking)
        return Given(chunks, feedback)

    async def _replayed(
        self,
        done: FinishedRound,
        public_key: bytes,
        depth: Depth,
        given: Given,
        late: Late,
        origin: Origin | None,
    ) -> AuditResult | None:
        pushed, record = done.log_of(public_key), done.works[public_key]
        if pushed is None:
            return None
        start = done.params, done.applied
        return await self._auditor.audit(Job(done.plan, start, depth, record, pushed, late, given, done.former, origin))

    async def _ended(self, done: FinishedRound, uid: int, work: asyncio.Task[T] | None, late: Late) -> T | None:
        """Its result, waited for while there is time. Whatever goes wrong with it is told, and is no observation."""
        while work is not None and not work.done() and not late():
            await asyncio.wait({work}, timeout=self._p.clock.block_s)
        if work is None or not work.done():
            return None
        if (error := work.exception()) is None:
            return work.result()
        said = f"uid {uid} is not probed: {named(error)}"
        log.error("round %d: %s", done.plan.round.index, said)
        self._p.metrics.emit(Fault(what="audit", detail=said), round=done.plan.round.index)
        return None
