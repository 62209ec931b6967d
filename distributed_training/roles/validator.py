"""The story of a validator: follow every round, say on chain what it holds, audit, score, set weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import ChainFault, WireError
from distributed_training.manifest import ScoringSection
from distributed_training.roles.audit import Auditor
from distributed_training.roles.evaluation import Evaluator
from distributed_training.roles.follower import Follower
from distributed_training.roles.parts import Parts
from distributed_training.roles.report import RoundReport
from distributed_training.roles.service import LogService, PushedLog
from distributed_training.rules import membership, scoring
from distributed_training.rules.audit_plan import AuditTask, audit_beacon
from distributed_training.rules.audit_plan import plan as plan_audits
from distributed_training.rules.clock import weights_due
from distributed_training.rules.weights import weight_vector
from distributed_training.training.outer import RunState
from distributed_training.types import (
    AuditResult,
    AverageOutcome,
    Candidate,
    Commitment,
    Observation,
    Role,
    Roster,
    ScoreCard,
    WorkRecord,
)
from distributed_training.wire import decode_signed, encode_commitment

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinishedRound:
    """What the audit of a round needs after it was settled."""

    plan: RoundPlan
    state: RunState  # the state the round started from
    outcome: AverageOutcome
    works: Mapping[bytes, WorkRecord]
    logs: Mapping[bytes, PushedLog]


class Validator:
    def __init__(
        self,
        parts: Parts,
        follower: Follower,
        auditor: Auditor,
        logs: LogService,
        evaluator: Evaluator,
        *,
        last_round: int | None,
    ) -> None:
        """last_round: the round after which everybody stops, so that nobody is left to answer its audits."""
        self._p, self._follower, self._auditor = parts, follower, auditor
        self._logs, self.evaluator, self._last_round = logs, evaluator, last_round
        last, self._cards = parts.journal.load_cards()
        self._last_scored = -1 if last is None else last
        self._audits: asyncio.Task[None] | None = None

    async def run_round(self) -> None:
        """One round, as in protocol section 3; the former round's audits run beside it."""
        start = await self._follower.prepare()
        report = RoundReport(self._p, start.round)
        await self._p.clock.reached(start.round.start_block)
        report.phase("train")
        plan = await self._follower.plan(start)
        listened = self._p.clock.head <= plan.round.output_block
        await self._logs.open_round(plan)
        report.phase("average")
        held = await self._p.butterfly.gather(plan, plan.round.map_block - 2)
        report.averaged()
        report.phase("map")
        await self._commit_map(plan, held)
        base = self._follower.state
        await self._p.clock.final(plan.round.map_block)
        logs = self._logs.logs()
        report.phase("settle")
        outcome = await self._follower.settle(plan, held)
        works = {key: work for output in held.values() for key, work in output.works.items()}
        works |= self._pushed_works(plan, logs)
        report.settled(plan, outcome, self._follower.root, _tokens(plan, works))
        await self.evaluator.evaluate(self._follower.state, plan.round.index)
        await self.finish_audits()
        due = plan.round.index > self._last_scored and plan.round.index != self._last_round
        if outcome.applied and listened and due:
            finished = FinishedRound(plan, base, outcome, works, logs)
            self._audits = asyncio.create_task(self._audit_round(finished), name="audits")

    async def finish_audits(self) -> None:
        """Wait for the audits under way: scores are folded once per round, in order."""
        if self._audits is not None:
            await self._audits
            self._audits = None

    async def _commit_map(self, plan: RoundPlan, held: Mapping[int, SliceOutput]) -> None:
        p, round_index = self._p, plan.round.index
        if p.clock.head >= plan.round.map_block:
            return
        commitment = Commitment(
            role=Role.VALIDATOR,
            reduces=False,
            peer_key=p.peer_key,
            first_round=round_index,
            first=self._follower.root,
            second_round=round_index,
            second=membership.encode_slice_map([j in held for j in range(len(plan.slices))]),
        )
        try:
            block = await p.chain.commit(encode_commitment(commitment))
        except ChainFault as error:
            log.error("round %d: the slice map could not be committed: %s", round_index, error)
            return
        if block > plan.round.map_block:
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

    # --- audit and score ---------------------------------------------------------------------------

    async def _audit_round(self, done: FinishedRound) -> None:
        p, plan = self._p, done.plan
        await p.clock.final(plan.round.audit_block)
        p.metrics.emit("phase", round=plan.round.index, phase="audit")
        beacon = audit_beacon(await p.chain.block_hash(plan.round.audit_block), plan.round.index)
        by_key = {c.public_key: self._cards[c.hotkey] for c in plan.candidates if c.hotkey in self._cards}
        works = [done.works[key] for key in sorted(done.works)]
        observed: dict[str, Observation] = {}
        for task in plan_audits(beacon, p.signer.public_key, works, by_key, p.manifest.audit):
            candidate = plan.candidate(task.public_key)
            if candidate is not None:
                observation = await self._observe(done, task, candidate, beacon)
                if observation is not None:
                    observed[candidate.hotkey] = observation
        observed |= {c.hotkey: self._observation(done, c, 0.0, None, None, "no record") for c in _silent(done)}
        self._fold(done, observed)
        await self._set_weights(plan.round.index)

    async def _observe(
        self, done: FinishedRound, task: AuditTask, candidate: Candidate, beacon: bytes
    ) -> Observation | None:
        """None: our own trouble, or nobody's log reached us, so nothing was observed."""
        record, pushed = done.works[task.public_key], done.logs.get(task.public_key)
        late = pushed is None or pushed.block > done.plan.round.audit_block
        audit: AuditResult | None = None
        goodput: float | None = None
        if late and not done.logs:
            return None
        if not late and pushed is not None:
            audit, probe = await self._auditor.audit(done.plan, done.state, task, record, pushed, beacon)
            goodput = None if probe is None else probe.goodput_bytes_per_s
        share = done.outcome.credit.get(task.public_key, 0.0)
        credited = 0.0 if late else scoring.credited_tokens(record.tokens, share, self._p.manifest.average.token_cap)
        reason = "log missing" if late else "" if audit is None else audit.reason
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
        duty = scoring.duty(share, spec is not None, spec is not None and spec.index in done.outcome.counted)
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
        for hotkey in sorted(set(self._cards) | set(observed)):
            card = self._cards.get(hotkey)
            if hotkey in observed:
                cards[hotkey] = scoring.fold(card, observed[hotkey], section, cap)
            elif card is not None:
                cards[hotkey] = card if hotkey in committed else scoring.fold_absent(card, plan.round.index, section)
        self._cards, self._last_scored = cards, plan.round.index
        p.journal.save_cards(plan.round.index, cards, {h: _plain(o) for h, o in observed.items()})

    async def _set_weights(self, round_index: int) -> None:
        p = self._p
        roster = await p.chain.roster(p.clock.finalized)
        shown, weights = scored(self._cards, round_index, roster, p.manifest.scoring)
        p.metrics.emit("scores", round=round_index, cards=shown)
        me = roster.by_public_key(p.signer.public_key)
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
    """Who put a hash on chain and gave nobody anything: no credit. Nobody is, while no log at all has reached us."""
    credit = done.outcome.credit
    return [
        c
        for c in done.plan.candidates
        if done.logs and c.public_key not in done.works and credit.get(c.public_key, 0.0) == 0.0
    ]


def _tokens(plan: RoundPlan, works: Mapping[bytes, WorkRecord]) -> dict[int, int]:
    return {c.uid: works[c.public_key].tokens for c in plan.candidates if c.public_key in works}


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
