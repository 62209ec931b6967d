"""What a validator makes of a settled round: audits, observations, one fold into the score cards, weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import ChainFault
from distributed_training.protocol.manifest import ScoringSection
from distributed_training.protocol.rules import scoring
from distributed_training.protocol.rules.audit_plan import AuditTask, audit_beacon
from distributed_training.protocol.rules.audit_plan import plan as plan_audits
from distributed_training.protocol.rules.clock import weights_due
from distributed_training.protocol.rules.weights import weight_vector
from distributed_training.protocol.types import (
    AuditResult,
    AverageOutcome,
    Candidate,
    Observation,
    Roster,
    ScoreCard,
    WorkRecord,
)
from distributed_training.roles.auditing.audit import Auditor, Probe
from distributed_training.roles.parts import Parts
from distributed_training.roles.service import PushedLog
from distributed_training.roles.trouble import attempt
from distributed_training.training.outer import RunState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinishedRound:
    """What the audit of a round needs after it was settled."""

    plan: RoundPlan
    state: RunState  # the state the round started from
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

    async def examine(self, done: FinishedRound) -> bytes:
        """Audit every miner of a settled round after its beacon, fold what was seen, set weights; the beacon."""
        p, plan = self._p, done.plan
        await p.clock.final(plan.round.audit_block)
        p.metrics.emit("phase", round=plan.round.index, phase="audit")
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
        await self._set_weights(plan.round.index)
        return beacon

    async def _look(self, done: FinishedRound, task: AuditTask, candidate: Candidate, beacon: bytes) -> Look:
        record, pushed = done.works[task.public_key], done.logs.get(task.public_key)
        # One block of grace after s+X: later, and certainly once the beacon is out, a miner could fit its log to it.
        if pushed is None or pushed.block > done.plan.round.output_block + 1:
            return Look(candidate, task, False, None, None)
        return Look(
            candidate, task, True, *await self._auditor.audit(done.plan, done.state, task, record, pushed, beacon)
        )

    def _believed(self, round_index: int, looks: Sequence[Look]) -> list[Look]:
        """If the network failed in every probe of several peers, it is our own line: then none was measured."""
        probes = [look.probe for look in looks if look.probe is not None]
        if len(probes) < 2 or not all(probe.unreached for probe in probes):
            return list(looks)
        detail = f"none of {len(probes)} probes came through: no goodput is recorded"
        log.error("round %d: own trouble (probe): %s", round_index, detail)
        self._p.metrics.emit("fault", round=round_index, what="probe", detail=detail)
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
        self._p.metrics.emit(
            "audit",
            round=done.plan.round.index,
            target=candidate.uid,
            verdict=None if audit is None else audit.verdict.value,
            quality=None if audit is None else audit.quality,
            depth=None if audit is None else audit.depth,
            failed_step=None if audit is None else audit.failed_step,
            error=None if audit is None else audit.error,
            reason=reason,
            goodput_bytes_per_s=goodput,
            duty=duty,
        )
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

    async def _set_weights(self, round_index: int) -> None:
        p = self._p
        roster = await p.chain.roster(p.clock.finalized)
        shown, weights = scored(self.cards, round_index, roster, p.manifest.scoring)
        p.metrics.emit("scores", round=round_index, cards=shown)
        me = roster.by_public_key(p.signer.public_key)
        if me is not None and not me.may_validate:
            log.info("round %d: no weights set (no permit to validate)", round_index)
            return
        if not weights or me is None or not weights_due(p.clock.head, me.last_update, p.params.weights_rate_limit):
            log.info("round %d: no weights set (%s)", round_index, "rate limit" if weights else "nothing scored")
            return
        try:
            block = await p.chain.set_weights(weights, p.manifest.version_key)
        except ChainFault as error:
            log.error("round %d: weights were not set: %s", round_index, error)
            return
        p.metrics.emit("weights", round=round_index, block=block, weights=weights)


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


def scored(
    cards: Mapping[str, ScoreCard], round_index: int, roster: Roster, section: ScoringSection
) -> tuple[dict[int, dict[str, Any]], dict[int, float]]:
    """(uid -> published terms, reason and note; uid -> weight) of score cards folded up to `round_index`."""
    terms = scoring.terms(cards, round_index, section)
    reasons = scoring.reasons(cards, terms, section)
    shown = {
        card.uid: asdict(terms[hotkey]) | {"reason": reasons[hotkey], "note": card.note}
        for hotkey, card in cards.items()
    }
    return shown, weight_vector(terms, cards, roster)
