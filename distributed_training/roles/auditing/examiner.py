"""What a validator makes of a settled round: looks, observations, one fold into the score cards, weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from distributed_training.errors import NetworkFault
from distributed_training.metrics import events
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard
from distributed_training.protocol.rules import duty as duties
from distributed_training.protocol.rules import scoring
from distributed_training.protocol.rules.audit_plan import audit_beacon, voter_share
from distributed_training.protocol.rules.audit_plan import plan as plan_audits
from distributed_training.protocol.rules.fidelity import scored
from distributed_training.protocol.types import Candidate
from distributed_training.roles.auditing.accusations import Accusations
from distributed_training.roles.auditing.audit import Auditor
from distributed_training.roles.auditing.looking import FinishedRound, Look, Looker
from distributed_training.roles.auditing.probe import Prober
from distributed_training.roles.auditing.weights import WeightSetter
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import attempt, tell

log = logging.getLogger(__name__)


class Examiner:
    """Holds the score cards; they survive a restart through the journal."""

    def __init__(self, parts: Parts, auditor: Auditor, prober: Prober) -> None:
        self._p = parts
        last, self.cards = parts.journal.load_cards()
        self.last_scored = -1 if last is None else last
        self.weights = WeightSetter(parts)
        self.weights.offer(self.last_scored, self.cards)
        self.accusations = Accusations(parts.manifest, parts.peers, parts.clock, parts.signer, parts.verify)
        self._looker = Looker(parts, auditor, prober, self.accusations)
        self._closing = asyncio.Event()

    async def examine(self, done: FinishedRound) -> bytes:
        """Audit every miner of a settled round after its beacon, fold what was seen, set weights; the beacon."""
        p, plan = self._p, done.plan
        self._closing.clear()
        await p.clock.final(plan.round.audit_block)
        p.metrics.emit(events.Phase(phase="audit"), round=plan.round.index)
        beacon = audit_beacon(await p.chain.block_hash(plan.round.audit_block), plan.round.index)
        by_key = {c.public_key: self.cards[c.hotkey] for c in plan.candidates if c.hotkey in self.cards}
        works = [done.works[key] for key in sorted(done.works)]
        own, cap = p.signer.public_key, p.manifest.average.token_cap
        tasks = plan_audits(beacon, own, works, by_key, p.manifest.audit, voter_share(plan.voters, own), cap)
        observed: dict[str, Observation] = {}
        for look in self._believed(plan.round.index, await self._looker.look(done, tasks, beacon)):
            observation = self._observe(done, look)
            if observation is not None:
                observed[look.candidate.hotkey] = observation
        observed |= {c.hotkey: self._observation(done, c, 0.0, None, None, "no record") for c in _silent(done)}
        self._fold(done, observed)
        await self._tell_scores()
        return beacon

    async def answer(self, done: FinishedRound) -> None:
        """After a round was folded: look into what other validators say of it, until `close`."""
        while not self._closing.is_set():
            answered = await self._looker.answer(done, self._closing.is_set)
            if answered is None:
                await self._next_word()
            elif answered.condemned is not None:
                await self._condemn(done, *answered.condemned)

    async def _next_word(self) -> None:
        waits = [asyncio.create_task(wait) for wait in (self.accusations.came(), self._closing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def close(self) -> None:
        """The parameters of the round that is answered for are needed elsewhere."""
        self._closing.set()

    async def cancel(self) -> None:
        await self.accusations.cancel()
        await self.weights.cancel()

    async def _condemn(self, done: FinishedRound, candidate: Candidate, audit: AuditResult) -> None:
        """A hard fail that our own replay found after the round was folded."""
        index, card = done.plan.round.index, self.cards.get(candidate.hotkey)
        self._p.metrics.emit(_told(candidate.uid, audit, audit.reason, None, None), round=index)
        if card is None or card.registered_block != candidate.registered_block:
            return
        condemned = scoring.condemn(card, index, audit, self._p.manifest.scoring)
        self.cards = {**self.cards, candidate.hotkey: condemned}
        attempt(self._p, index, "disk", lambda: self._p.journal.save_cards(self.last_scored, self.cards))
        await self._tell_scores()

    async def _tell_scores(self) -> None:
        p, index = self._p, self.last_scored
        p.metrics.emit(events.Scores(cards=score_table(self.cards, index, p.manifest)), round=index)
        self.weights.offer(index, self.cards)
        await self.weights.look()

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
        credited = duties.credited_tokens(tokens, share, self._p.manifest.average.token_cap)
        reason = "" if audit is None else audit.reason
        if probe is not None and look.lacks:
            credited, reason = 0.0, "vector not served"  # else a poisoner would skip just the audit that finds it
        if probe is not None and look.rootless:
            credited, reason = 0.0, "where training began not served"
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
        outcome, key = done.outcome, candidate.public_key
        able = duties.can_reduce(candidate, done.plan.carry)
        duty = duties.duty(outcome.credit.get(key, 0.0), outcome.reduced.get(key), able)
        self._p.metrics.emit(_told(candidate.uid, audit, reason, goodput, duty), round=done.plan.round.index)
        return Observation(
            uid=candidate.uid,
            hotkey=candidate.hotkey,
            registered_block=candidate.registered_block,
            round=done.plan.round.index,
            credited_tokens=credited,
            audit=None if audit is None else scored(audit, self._p.manifest.audit),
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


def _told(uid: int, audit: AuditResult | None, reason: str, goodput: float | None, duty: float | None) -> events.Audit:
    return events.Audit(
        target=uid,
        verdict=None if audit is None else audit.verdict.value,
        quality=None if audit is None else audit.quality,
        depth=None if audit is None else audit.depth,
        failed_step=None if audit is None else audit.failed_step,
        error=None if audit is None else audit.error,
        good=None if audit is None else audit.good,
        bad=None if audit is None else audit.bad,
        noise=None if audit is None else audit.noise,
        reason=reason,
        goodput_bytes_per_s=goodput,
        duty=duty,
    )


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
