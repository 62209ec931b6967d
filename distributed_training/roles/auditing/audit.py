"""One validator's replay of one miner's steps: the train query of protocol section 7."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from distributed_training.averaging.codecs.base import Chunk, Vector
from distributed_training.averaging.implied import Kept, implied
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.sizes import most_pages
from distributed_training.data.base import PageSource
from distributed_training.data.loader import BatchStream, PagesExhausted
from distributed_training.data.patience import PageReads
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import DataUnavailable, DeviceLost, PeerFault, WireError, named
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Fault
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.assignment import page_index
from distributed_training.protocol.rules.audit_plan import Depth
from distributed_training.protocol.rules.fidelity import gradient_error, judge_direction
from distributed_training.protocol.types import NO_ROOT, StepRecord, WorkRecord
from distributed_training.protocol.wire import decode_log, encode_step
from distributed_training.roles.auditing.buffers import NO_FEEDBACK, Feedback, check_feedback
from distributed_training.roles.auditing.logs import PushedLog
from distributed_training.roles.auditing.query import Claim, Enough, Parts, train_query
from distributed_training.roles.auditing.starts import (
    START_SEQUENCES,
    Former,
    ReplayStart,
    can_replay,
    check_began,
    check_loss,
)
from distributed_training.roles.began import Origin
from distributed_training.roles.mining.work import assigned_batches, round_permutation
from distributed_training.roles.parts import TrainingThread
from distributed_training.training.device import out_of_memory
from distributed_training.training.inner import InnerLoop, InnerResult
from distributed_training.training.replay import replay

log = logging.getLogger(__name__)

Start = tuple[Vector, int]  # parameters at the start of a round, and rounds applied before it
LEAST_VECTOR = 0.5  # of its chunks
TOO_LONG = "more steps claimed than its pages hold"


class Unread:
    """Miners whom unreadable pages kept from being audited: one outage is one fault, however many there are."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._round, self._count = metrics, -1, 0
        self._trouble = Ongoing(log, "pages for audits cannot be read", "pages for audits can be read", logging.ERROR)

    def add(self, round_index: int, uid: int, error: DataUnavailable) -> None:
        """The first of a round is told, with what was wrong; the others are counted."""
        if round_index != self._round:  # also when the last round's audits ended early
            self._round, self._count = round_index, 0
        self._count += 1
        said = f"uid {uid} is not audited: {error}"
        self._trouble.begin(f"round {round_index}: {said}")
        if self._count == 1:
            self._metrics.emit(Fault(what="audit", detail=said), round=round_index)

    def close(self, round_index: int) -> None:
        """The round's audits are over."""
        if self._round != round_index or self._count == 0:
            self._trouble.end()
        self._count = 0


@dataclass(frozen=True, slots=True)
class Given:
    """What is here of a committed vector, each part checked against its root."""

    chunks: Mapping[int, bytes]  # all of it or a few
    feedback: Feedback = NO_FEEDBACK

    def enough(self, plan: RoundPlan) -> bool:
        """Can a vector be judged by it? What its sender was to reduce itself nobody else has."""
        if plan.uplink.feedback:
            return self.feedback.enough
        return len(self.chunks) >= LEAST_VECTOR * plan.layout.num_chunks

    def parts(self, plan: RoundPlan) -> Iterator[tuple[int, Chunk, Kept | None]]:
        """In order: those chunks of which all is here that says what its work was."""
        for index, data in sorted(self.chunks.items()):
            kept = self.feedback.kept.get(index)
            if kept is not None or not plan.uplink.feedback:
                yield index, plan.uplink.parse(data, plan.layout, index), kept

    def vector(self, plan: RoundPlan) -> Iterator[tuple[slice, Vector]]:
        """The pseudo-gradient that it stands for."""
        for index, chunk, kept in self.parts(plan):
            yield slice(*plan.layout.coords(index)), chunk.decode() if kept is None else implied(chunk, kept)


@dataclass(frozen=True, slots=True)
class Job:
    """One miner's round to be looked at. `late`: turns true when nobody wants to know any more; called in threads."""

    plan: RoundPlan
    start: Start
    depth: Depth
    record: WorkRecord
    pushed: PushedLog
    late: Callable[[], bool]
    given: Given
    former: Former | None = None  # overlap: the round before
    origin: Origin | None = None  # and this miner's vector of it, if its training went on from there


class Auditor:
    """Everything an audit needs except the round it is about."""

    def __init__(
        self,
        manifest: RunManifest,
        training: TrainingThread,
        loop: InnerLoop,
        source: PageSource,
        tokenizer: Tokenizer,
        page_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._manifest, self._training, self._loop = manifest, training, loop
        self._tokenizer, self._metrics = tokenizer, metrics
        self._reads, self._page_timeout_s = PageReads(source), page_timeout_s
        self._noise: tuple[int, float] | None = None  # round, n0
        self.unread = Unread(metrics)

    async def audit(self, job: Job) -> AuditResult | None:
        """None: nothing was observed, because of our own trouble (said) or because it was too late, or not asked for.

        Nothing that a miner gave, and no trouble of ours but a GPU that failed, ends more than this.
        """
        uid, index = job.record.uid, job.plan.round.index
        log.debug("round %d: uid %d claims %d steps, %d are replayed", index, uid, job.record.steps, job.depth.length)
        try:
            return await self._training.run(lambda: self._look(job))
        except PeerFault as error:
            return AuditResult(Verdict.FAIL, 0.0, job.depth.length, None, None, str(error))
        except DeviceLost:
            raise
        except Exception as error:
            if job.late():
                return None
            if isinstance(error, DataUnavailable):
                self.unread.add(index, uid, error)
                return None
            if out_of_memory(error):
                await self._training.run(self._loop.shrink)
            said = f"uid {uid} is not audited: {named(error)}"
            log.error("round %d: %s", index, said)
            self._metrics.emit(Fault(what="audit", detail=said), round=index)
            return None

    def _look(self, job: Job) -> AuditResult | None:
        """In the training thread. Raises PeerFault for what the miner alone is to blame for."""
        pages, steps = self._decode(job.record, job.pushed.read())
        self._check_pages(job, pages)
        check_began(job.record, job.former, job.origin)
        if job.depth.length == 0 or not can_replay(job.record, job.former, job.origin):
            return None
        self._check_start(job)
        check_feedback(job.plan, job.given.chunks, job.given.feedback.kept)
        claim = Claim(steps, self._vector(job), job.start[0], self._floor(job, pages))

        made: list[InnerResult] = []

        def replayed(otherwise: bool, enough: Enough) -> InnerResult:
            made.append(self._replay(job, pages, job.depth.length, otherwise, enough))
            return made[-1]

        result = train_query(claim, replayed, job.depth.length, self._manifest.audit)
        if result.verdict is Verdict.FAIL or job.depth.full or not job.given.chunks:
            return result
        astray = judge_direction(self._directions(job, made[-1]), depth=len(made[-1].steps), steps=job.record.steps)
        return result if astray is None else replace(astray, noise=result.noise)

    def _directions(self, job: Job, made: InnerResult) -> Iterator[tuple[Vector, Vector]]:
        """What a replay moved, and what was committed, in the chunks that are here."""
        for part, committed in job.given.vector(job.plan):
            yield job.start[0][part] - made.end[part], committed

    def _decode(self, record: WorkRecord, data: bytes) -> tuple[tuple[bytes, ...], tuple[StepRecord, ...]]:
        """The pushed log against the record's roots and claim. Raises WireError: that is the miner's fault."""
        pages, steps = decode_log(
            data,
            max_pages=most_pages(self._manifest),
            max_steps=self._manifest.inner.max_steps,
            batch_size=self._manifest.data.batch_size,
            groups=len(self._loop.groups),
            sketch_size=self._manifest.audit.sketch_size,
        )
        if merkle_root([digest(encode_step(s)) for s in steps]) != record.log_root:
            raise WireError("log does not hash into the log root")
        if merkle_root(pages) != record.pages_root:
            raise WireError("page digests do not hash into the page root")
        if len(steps) != record.steps:
            raise WireError(f"log has {len(steps)} steps, {record.steps} are claimed")
        return pages, steps

    def _check_pages(self, job: Job, listed: tuple[bytes, ...]) -> None:
        """The named pages against the assigned ones, by what the page manifest says: none is read for it. A page whose
        digest nobody has said is compared when a replay comes to it. Raises WireError."""
        data, record, source = self._manifest.data, job.record, self._reads.source
        if record.uid >= self._manifest.max_uids:
            raise WireError(f"uid {record.uid} has no pages: the run is for uids below {self._manifest.max_uids}")
        permutation = round_permutation(self._manifest, job.plan.round.index, job.plan.beacon)
        most = 0 if data.tokenizer != "file" else None  # tokens: of each byte one at most, and one after each document
        for number, named_digest in enumerate(listed):
            index = page_index(permutation, self._manifest.max_uids, record.uid, number)
            if index is None:
                raise WireError(f"{len(listed)} pages are named, its uid has {number}")
            facts = source.facts(index)
            if facts.digest is not None and facts.digest != named_digest:
                raise WireError("pages are not the assigned ones")
            if most is not None:
                most = most + facts.text_bytes + facts.rows if facts.text_bytes else None
        if not listed or (most is not None and most < record.steps * self._manifest.tokens_per_step):
            raise WireError(TOO_LONG)

    def _floor(self, job: Job, pages: tuple[bytes, ...]) -> float:
        """n0 of this round: measured once, on the first miner's first step."""
        index = job.plan.round.index
        if self._noise is None or self._noise[0] != index:
            mine, other = (self._replay(job, pages, 1, otherwise, lambda record: False) for otherwise in (False, True))
            measured = gradient_error(other.steps[0], mine.steps[0]) if mine.steps and other.steps else 0.0
            self._noise = index, measured
            log.debug("round %d: the noise floor between our two precisions is %.2g", index, measured)
        return self._noise[1]

    def _replay(self, job: Job, listed: tuple[bytes, ...], depth: int, otherwise: bool, enough: Enough) -> InnerResult:
        """Raises what kept us from it, and WireError for pages that are not the named ones; where the miner has no
        further page the replay ends, and its log is judged by that."""
        plan, start = job.plan, _start(job)
        with self._batches(job, depth) as batches:
            replayed = replay(
                self._loop, start.params, batches,
                applied_rounds=start.applied,
                sketch_seed=plan.beacon,
                depth=depth,
                enough=enough,
                cancelled=partial(self._stopped, job),
                otherwise=otherwise,
                shift=start.shift,
            )  # fmt: skip
            _raise_fault(batches)
        taken = batches.page_digests
        if taken != (listed if len(replayed.steps) == job.record.steps else listed[: len(taken)]):
            raise WireError("pages are not the assigned ones")
        return start.ended(replayed)

    def _check_start(self, job: Job) -> None:
        """Raises WireError where the miner's training began at a vector that no training leads to."""
        if job.record.began_at == NO_ROOT:
            return
        with self._batches(job, 1) as batches:
            tokens = next(batches, None)
            _raise_fault(batches)
        if tokens is None:  # its replay finds that
            return
        where, seen, stop = (_start(job).params, job.start[0]), tokens[:START_SEQUENCES], partial(self._stopped, job)
        check_loss(*(self._loop.evaluate(flat, seen, len(seen), stop) for flat in where))

    def _batches(self, job: Job, count: int) -> BatchStream:
        """Of the miner's first steps."""
        return assigned_batches(
            self._manifest,
            self._reads.until(partial(self._stopped, job), self._page_timeout_s),
            self._tokenizer,
            job.plan.round.index,
            job.plan.beacon,
            job.record.uid,
            num_batches=count,
        )

    def _stopped(self, job: Job) -> bool:
        return self._training.stopping or job.late()

    def _vector(self, job: Job) -> Parts | None:
        """What was committed, part by part, if it is to be compared and enough of it came."""
        return partial(job.given.vector, job.plan) if job.depth.full and job.given.enough(job.plan) else None


def _start(job: Job) -> ReplayStart:
    return ReplayStart(job.record, job.start, job.former, job.origin)


def _raise_fault(batches: BatchStream) -> None:
    if batches.fault is not None and not isinstance(batches.fault, PagesExhausted):
        raise batches.fault
