"""What a validator makes of a settled round: audits, observations, one fold into the score cards, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import NetworkFault
from distributed_training.metrics import events
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard
from distributed_training.protocol.rules import scoring
from distributed_training.protocol.rules.audit_plan import AuditTask, audit_beacon
from distributed_training.protocol.rules.audit_plan import plan as plan_audits
from distributed_training.protocol.types import AverageOutcome, Candidate, WorkRecord
from distributed_training.roles.auditing.audit import Auditor
from distributed_training.roles.auditing.probe import Probe
from distributed_training.roles.auditing.weights import WeightSetter
from distributed_training.roles.parts import Parts
from distributed_training.roles.service import PushedLog
from distributed_training.roles.trouble import attempt, tell
from distributed_training.training.outer import Vector


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

    @property
    def missed(self) -> bool:
        """Does a log that is not here say anything about its miner? Not while none at all has reached us."""
        return self.heard_all and bool(self.logs)


@dataclass(frozen=True, slots=True)
class Look:
    """What a validator saw of one miner before it judges."""

    candidate: Candidate
    task: AuditTask
    pushed: bool  # its log was here in time
    audit: AuditResult | None
    probe: Probe | None


class Examiner:
    """Holds the score cards; they survive a restart through the journal."""

    def __init__(self, parts: Parts, auditor: Auditor) -> None:
        self._p, self._auditor = parts, auditor
        last, self.cards = parts.journal.load_cards()
        self.last_scored = -1 if last is None else last
        self.weights = WeightSetter(parts)
        self.weights.offer(self.last_scored, self.cards)

    async def examine(self, done: FinishedRound) -> bytes:
        """Audit every miner of a settled round after its beacon, fold what was seen, set weights; the beacon."""
        p, plan = self._p, done.plan
        await p.clock.final(plan.round.audit_block)
        p.metrics.emit(events.Phase(phase="audit"), round=plan.round.index)
        beacon = audit_beacon(await p.chain.block_hash(plan.round.audit_block), plan.round.index)
        by_key = {c.public_key: self.cards[c.hotkey] for c in plan.candidates if c.hotkey in self.cards}
        works = [done.works[key] for key in sorted(done.works)]
        looks: list[Look] = []
        for task in plan_audits(beacon, p.signer.public_key, works, by_key, p.manifest.audit):
            candidate = plan.candidate(task.public_key)
            if candidate is not None:
                looks.append(await self._look(done, task, candidate, beacon))
        self._auditor.unread.close(plan.round.index)
        observed: dict[str, Observation] = {}
        for look in self._believed(plan.round.index, looks):
            observation = self._observe(done, look)
            if observation is not None:
                observed[look.candidate.hotkey] = observation
        observed |= {c.hotkey: self._observation(done, c, 0.0, None, None, "no record") for c in _silent(done)}
        self._fold(done, observed)
        table = score_table(self.cards, plan.round.index, p.manifest)
        p.metrics.emit(events.Scores(cards=table), round=plan.round.index)
        self.weights.offer(plan.round.index, self.cards)
        await self.weights.look()
        return beacon

    async def _look(self, done: FinishedRound, task: AuditTask, candidate: Candidate, beacon: bytes) -> Look:
        record, pushed = done.works[task.public_key], done.logs.get(task.public_key)
        # One block of grace after s+X: later, and certainly once the beacon is out, a miner could fit its log to it.
        if pushed is None or pushed.block > done.plan.round.output_block + 1:
            return Look(candidate, task, False, None, None)
        start = done.params, done.applied
        return Look(candidate, task, True, *await self._auditor.audit(done.plan, start, task, record, pushed, beacon))

    def _believed(self, round_index: int, looks: Sequence[Look]) -> list[Look]:
        """If the network failed in every probe of several peers, it is our own line: then none was measured."""
        probes = [look.probe for look in looks if look.probe is not None]
        if len(probes) < 2 or not all(probe.unreached for probe in probes):
            return list(looks)
        silence = NetworkFault(f"none of {len(probes)} probes came through: no goodput is recorded")
        tell(self._p, round_index, "probe", silence)
        return [replace(look, probe=None) for look in looks]

    def _observe(self, done: FinishedRound, look: Look) -> Observation | None:
        """None: our own trouble, or nobody's log reached us, so nothing was observed."""
        candidate, task, audit, probe = look.candidate, look.task, look.audit, look.probe
        if not look.pushed:
            return self._observation(done, candidate, 0.0, None, None, "log missing") if done.missed else None
        goodput = None if probe is None else probe.goodput_bytes_per_s
        share = done.outcome.credit.get(task.public_key, 0.0)
        tokens = done.works[task.public_key].tokens
        credited = scoring.credited_tokens(tokens, share, self._p.manifest.average.token_cap)
        reason = "" if audit is None else audit.reason
        if task.depth.full and probe is not None and len(probe.chunks) < done.plan.layout.num_chunks:
            credited, reason = 0.0, "vector not served"  # else a poisoner would skip just the audit that finds it
        return self._observation(done, candidate, credited, audit, goodput, reason)

    def _observation(
        self,
        done: FinishedRound,
        candidate: Candidate,
        credited: float,
        audit: AuditResult | None,
        goodput: float | None,
        reason: str,
    ) -> Observation:
        """With the duty that the counted bitmaps show; told to the metrics too."""
        share, spec = done.outcome.credit.get(candidate.public_key, 0.0), done.plan.slice_of(candidate.public_key)
        counted = spec is not None and _reduced(done.outcome, spec.index)
        duty = scoring.duty(share, spec is not None, counted, scoring.can_reduce(candidate, done.plan.carry))
        told = events.Audit(
            target=candidate.uid,
            verdict=None if audit is None else audit.verdict.value,
            quality=None if audit is None else audit.quality,
            depth=None if audit is None else audit.depth,
            failed_step=None if audit is None else audit.failed_step,
            error=None if audit is None else audit.error,
            good=None if audit is None else audit.good,
            bad=None if audit is None else audit.bad,
            reason=reason,
            goodput_bytes_per_s=goodput,
            duty=duty,
        )
        self._p.metrics.emit(told, round=done.plan.round.index)
        return Observation(
            uid=candidate.uid,
            hotkey=candidate.hotkey,
            registered_block=candidate.registered_block,
            round=done.plan.round.index,
            credited_tokens=credited,
            audit=audit,
            goodput_bytes_per_s=goodput,
            duty=duty,
        )

    def _fold(self, done: FinishedRound, observed: Mapping[str, Observation]) -> None:
        """Fold the round into the cards: once, in one transaction."""
        p, plan = self._p, done.plan
        section, cap = p.manifest.scoring, p.manifest.average.token_cap
        committed = {c.hotkey for c in plan.candidates}
        cards: dict[str, ScoreCard] = {}
        for hotkey in sorted(set(self.cards) | set(observed)):
            card = self.cards.get(hotkey)
            if hotkey in observed:
                cards[hotkey] = scoring.fold(card, observed[hotkey], section, cap)
            elif card is not None:
                cards[hotkey] = card if hotkey in committed else scoring.fold_absent(card, plan.round.index, section)
        self.cards, self.last_scored = cards, plan.round.index
        plain = {h: _plain(o) for h, o in observed.items()}
        attempt(p, plan.round.index, "disk", lambda: p.journal.save_cards(plan.round.index, cards, plain))


def _silent(done: FinishedRound) -> list[Candidate]:
    """Who put a hash on chain and gave nobody anything: no credit. See `FinishedRound.missed`."""
    credit = done.outcome.credit
    return [
        c
        for c in done.plan.candidates
        if done.missed and c.public_key not in done.works and credit.get(c.public_key, 0.0) == 0.0
    ]


def _reduced(outcome: AverageOutcome, slice_index: int) -> bool:
    """By its own reducer: a slice that the backup had to reduce does its reducer no credit."""
    return slice_index in outcome.counted and slice_index not in outcome.backed_up


def _plain(observation: Observation) -> dict[str, object]:
    document = asdict(observation)
    if observation.audit is not None:
        document["audit"] = asdict(observation.audit) | {"verdict": observation.audit.verdict.value}
    return document


def score_table(cards: Mapping[str, ScoreCard], round_index: int, manifest: RunManifest) -> dict[int, dict[str, Any]]:
    """uid -> published terms, reason and note of score cards folded up to `round_index`."""
    terms = scoring.terms(cards, round_index, manifest.scoring)
    reasons = scoring.reasons(cards, terms, manifest.scoring)
    return {
        card.uid: asdict(terms[hotkey]) | {"reason": reasons[hotkey], "note": card.note}
        for hotkey, card in cards.items()
    }
