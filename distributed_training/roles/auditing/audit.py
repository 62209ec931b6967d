"""One validator's look at one miner: the train query and the integrity query of protocol section 7."""

from __future__ import annotations

import logging
from functools import partial

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.int8 import parse_chunk
from distributed_training.averaging.plan import RoundPlan
from distributed_training.data.base import PageSource
from distributed_training.data.loader import PagesExhausted, pages_used
from distributed_training.data.patience import PageReads
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import DataUnavailable, DeviceLost, LocalFault, PeerFault, WireError
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.events import Fault
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.audit_plan import AuditTask
from distributed_training.protocol.types import StepRecord, WorkRecord
from distributed_training.protocol.wire import decode_log, encode_step
from distributed_training.roles.auditing.probe import Probe, Prober
from distributed_training.roles.auditing.query import Claim, Enough, Parts, train_query
from distributed_training.roles.mining.work import assigned_batches, round_permutation
from distributed_training.roles.parts import TrainingThread
from distributed_training.roles.service import PushedLog
from distributed_training.training.device import out_of_memory
from distributed_training.training.inner import InnerLoop, InnerResult
from distributed_training.training.replay import replay

log = logging.getLogger(__name__)

Start = tuple[Vector, int]  # parameters at the start of a round, and rounds applied before it


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


class Auditor:
    """Everything an audit needs except the round it is about."""

    def __init__(
        self,
        manifest: RunManifest,
        prober: Prober,
        training: TrainingThread,
        loop: InnerLoop,
        source: PageSource,
        tokenizer: Tokenizer,
        page_timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._manifest, self._prober, self._training, self._loop = manifest, prober, training, loop
        self._tokenizer, self._metrics = tokenizer, metrics
        self.unread = Unread(metrics)
        self._source = PageReads(source).until(lambda: training.stopping, page_timeout_s)

    async def audit(
        self, plan: RoundPlan, start: Start, task: AuditTask, record: WorkRecord, pushed: PushedLog, beacon: bytes
    ) -> tuple[AuditResult | None, Probe | None]:
        """(train query, integrity query). None: our own trouble, nothing was observed."""
        candidate = plan.candidate(task.public_key)
        probe = await self._prober.probe(plan, candidate, record, beacon) if candidate is not None else None
        index = plan.round.index
        log.debug("round %d: uid %d claims %d steps, %d are replayed", index, task.uid, record.steps, task.depth.length)
        try:
            logged = await self._training.run(lambda: self._decode(record, pushed.log))  # of many numbers
            await self._training.run(lambda: self._check_pages(plan, record))
            replayed = partial(self._replay, plan, start, task.uid, task.depth.length)
            claim = Claim(logged, self._vector(plan, task, probe), start[0])
            depth, audit = task.depth.length, self._manifest.audit
            result = await self._training.run(lambda: train_query(claim, replayed, depth, audit))
        except PagesExhausted:
            return _failed(task, "more steps claimed than its pages hold"), probe
        except PeerFault as error:
            return _failed(task, str(error)), probe
        except DataUnavailable as error:
            self.unread.add(plan.round.index, task.uid, error)
            return None, probe
        except DeviceLost:
            raise
        except (LocalFault, MemoryError, RuntimeError) as error:  # torch says "out of memory" with a RuntimeError
            if out_of_memory(error):
                await self._training.run(self._loop.shrink)
            said = f"uid {task.uid} is not audited: {error or type(error).__name__}"
            log.error("round %d: %s", plan.round.index, said)
            self._metrics.emit(Fault(what="audit", detail=said), round=plan.round.index)
            return None, probe
        return result, probe

    def _decode(self, record: WorkRecord, data: bytes) -> tuple[StepRecord, ...]:
        """The pushed log against the record's root and claim. Raises WireError: that is the miner's fault."""
        steps = decode_log(
            data,
            max_steps=self._manifest.inner.max_steps,
            batch_size=self._manifest.data.batch_size,
            groups=len(self._loop.groups),
            sketch_size=self._manifest.audit.sketch_size,
        )
        if merkle_root([digest(encode_step(s)) for s in steps]) != record.log_root:
            raise WireError("log does not hash into the log root")
        if len(steps) != record.steps:
            raise WireError(f"log has {len(steps)} steps, {record.steps} are claimed")
        return steps

    def _check_pages(self, plan: RoundPlan, record: WorkRecord) -> None:
        expected = pages_used(
            self._source,
            self._tokenizer,
            round_permutation(self._manifest, plan.round.index, plan.beacon),
            max_uids=self._manifest.max_uids,
            uid=record.uid,
            batch_size=self._manifest.data.batch_size,
            sequence_length=self._manifest.data.sequence_length,
            num_steps=record.steps,
        )
        if merkle_root(expected) != record.pages_root:
            raise WireError("pages are not the assigned ones")

    def _replay(
        self, plan: RoundPlan, start: Start, uid: int, depth: int, otherwise: bool, enough: Enough
    ) -> InnerResult:
        """Raises what kept us from it; a page list that is too short is the miner's, and judged by its log."""
        params, applied = start
        batches = assigned_batches(self._manifest, self._source, self._tokenizer, plan.round.index, plan.beacon, uid)
        with batches:
            replayed = replay(
                self._loop,
                params,
                batches,
                applied_rounds=applied,
                sketch_seed=plan.beacon,
                depth=depth,
                enough=enough,
                cancelled=lambda: self._training.stopping,
                otherwise=otherwise,
            )
            if batches.fault is not None and not isinstance(batches.fault, PagesExhausted):
                raise batches.fault
        return replayed

    def _vector(self, plan: RoundPlan, task: AuditTask, probe: Probe | None) -> Parts | None:
        """What was committed, part by part, if all of it is to be compared and all of it came."""
        layout = plan.layout
        if not task.depth.full or probe is None or len(probe.chunks) < layout.num_chunks:
            return None
        chunks = probe.chunks
        return lambda: (
            (slice(*layout.coords(c)), parse_chunk(chunks[c], layout, c).decode()) for c in range(layout.num_chunks)
        )


def _failed(task: AuditTask, reason: str) -> AuditResult:
    return AuditResult(Verdict.FAIL, 0.0, task.depth.length, None, None, reason)
