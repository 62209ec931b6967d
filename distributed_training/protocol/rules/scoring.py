"""Observations -> S, G, B, I -> weights (protocol section 8, docs/scoring.md).

    S  steps      of credited tokens / token cap: the mean of the last `vesting_rounds` (M) rounds, as far as it has
                  vested: each layer of speed counts (rounds with it / M)^3, of the last 2 M, in full from M on
    G  gradient   (1 + p) / (1 + p + soft_fail_weight * f): p, f = decayed sums of q and 1 - q over the audits
    I  integrity  EMA of duty over the rounds with a commit, started at the first duty; 0 below `integrity_floor`; the
                  duty of who cannot be given a slice is at most duty.NO_REDUCER_DUTY
    B  bandwidth  mean over the last `goodput_probes` probes of clip(log(1 + g/g_min) / log(1 + g_ref/g_min), 0, 1),
                  g_ref = 4 x required, g_min = required / 4; an unanswered probe is a 0
    raw = I * G * S * ((1 - bandwidth_share) + bandwidth_share * B);  weight = raw / sum of raw

A GPU split over k uids earns what one uid earns; the token cap is a run constant, so nobody's weight before
normalisation depends on anybody else. Vesting is what makes cheating a loss: nothing is paid before it has been at risk
in many audits, and a hard failure takes all of it and sets G to 0 for `penalty_rounds` rounds, counted from the failed
one; then the miner is a newcomer: S = 0, no evidence, no weight before its first passed audit. In a new run everybody's
work vests alike, and weights are shares: who works is paid from its first passed audit on.

Folding is pure and happens once per applied round and miner, in round order; a discarded round is not folded.
Cards are keyed by (hotkey, registration block).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum, isfinite, log

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, ScoreTerms, Verdict
from distributed_training.protocol.sections import ScoringSection

VESTING_POWER = 3  # how late work vests; benchmarks/adversaries.py finds what less would earn a cheat


def fold(card: ScoreCard | None, observation: Observation, scoring: ScoringSection, token_cap: int) -> ScoreCard:
    """The card after one applied round in which the miner committed.

    A card of another registration does not count: the miner is new, but keeps what is left of its own hotkey's
    penalty. An observation with a number that is not finite or out of range counts as absence, except
    that a hard failure in it still counts; who reports one has confirmed it by a second run. `token_cap` > 0, tokens.
    """
    card = _current(card, observation)
    if observation.audit is not None and observation.audit.verdict is Verdict.FAIL:
        return _failed(card, observation, observation.audit, scoring)
    if not _valid(observation):
        return replace(
            fold_absent(card, observation.round, scoring), note=f"round {observation.round}: invalid observation"
        )
    card = _with_service(card, observation, scoring)
    if observation.round < card.zero_until_round:
        return card
    card = _with_steps(card, min(observation.credited_tokens, token_cap) / token_cap, scoring)
    card = _with_audit(card, observation.audit, observation.round, scoring)
    return replace(card, reason=_reason(card, scoring))


def condemn(card: ScoreCard, round: int, audit: AuditResult, scoring: ScoringSection) -> ScoreCard:
    """A hard failure in `round`, folded before or not: nothing earned is left, nothing can be earned for K rounds."""
    what = _describe(audit)
    return replace(
        card,
        work=(),
        steps=0.0,
        passes=0.0,
        fails=0.0,
        passed_audit=False,
        zero_until_round=max(card.zero_until_round, round + scoring.penalty_rounds),
        reason=f"audit failed: {what}",
        note=f"round {round}: fail, {what}",
    )


def fold_absent(card: ScoreCard, round: int, scoring: ScoringSection) -> ScoreCard:
    """The card after an applied round without a commit: S gets 0, audit sums decay, integrity and probes stay."""
    if round < card.zero_until_round:
        return card
    card = _with_audit(_with_steps(card, 0.0, scoring), None, round, scoring)
    unpaid = not card.passed_audit or card.steps == 0.0
    return replace(card, reason="absent" if unpaid else _reason(card, scoring))


def fidelity(card: ScoreCard, round_index: int, scoring: ScoringSection) -> float:
    """G: 0 under penalty, 1 without soft failures; how new a miner is enters S, which has to vest."""
    if round_index < card.zero_until_round:
        return 0.0
    return (1.0 + card.passes) / (1.0 + card.passes + scoring.soft_fail_weight * card.fails)


def integrity(card: ScoreCard, scoring: ScoringSection) -> float:
    """I: the EMA of duty; 0 before the first duty and below the floor."""
    if card.integrity is None or card.integrity < scoring.integrity_floor:
        return 0.0
    return card.integrity


def bandwidth(card: ScoreCard, scoring: ScoringSection) -> float:
    """B: the mean over the kept probes. It rises with each of them, so nobody gains by leaving a slow one unanswered.

    A miner this validator never probed gets 1: the validator may have been the one that was too busy, and what
    was not measured is not held against anybody. A probe that the *miner* left unanswered is a measured 0.
    """
    if not card.goodput or scoring.goodput_required <= 0.0:
        return 1.0
    g_min, g_ref = scoring.goodput_required / 4.0, scoring.goodput_required * 4.0
    return fsum(min(1.0, log(1.0 + g / g_min) / log(1.0 + g_ref / g_min)) for g in card.goodput) / len(card.goodput)


def terms(cards: Mapping[str, ScoreCard], round_index: int, scoring: ScoringSection) -> dict[str, ScoreTerms]:
    """The published numbers of every card after `round_index` was folded, keyed like `cards`, in uid order.

    Weights sum to 1, or are all 0 when nobody earned any. Below `cutoff` of the best, a weight is 0.
    """
    order = sorted(cards, key=lambda key: (cards[key].uid, key))
    raw = {key: _raw(cards[key], round_index, scoring) for key in order}
    best = max((r.weight for r in raw.values()), default=0.0)
    kept = {key: r.weight if r.weight >= scoring.cutoff * best else 0.0 for key, r in raw.items()}
    total = fsum(kept.values())
    return {key: replace(r, weight=kept[key] / total if total > 0.0 else 0.0) for key, r in raw.items()}


def reasons(
    cards: Mapping[str, ScoreCard], scored: Mapping[str, ScoreTerms], scoring: ScoringSection
) -> dict[str, str]:
    """Why each weight of `terms` is zero, in one line; "" where it is not."""

    def why(card: ScoreCard) -> str:
        vesting = len(card.work) < scoring.vesting_rounds
        yet = f" until more has vested: round {len(card.work)} of {scoring.vesting_rounds}" if vesting else ""
        return card.reason or f"below {100 * scoring.cutoff:g} % of the best{yet}"

    return {key: "" if t.weight > 0.0 else why(cards[key]) for key, t in scored.items()}


def _current(card: ScoreCard | None, observation: Observation) -> ScoreCard:
    """The card of this registration: the one given, or a newcomer's."""
    same_hotkey = card is not None and card.hotkey == observation.hotkey
    if card is not None and same_hotkey and card.registered_block == observation.registered_block:
        return replace(card, uid=observation.uid)
    penalised = card is not None and same_hotkey and observation.round < card.zero_until_round
    return ScoreCard(
        hotkey=observation.hotkey,
        registered_block=observation.registered_block,
        uid=observation.uid,
        work=(),
        steps=0.0,
        passes=0.0,
        fails=0.0,
        integrity=None,
        goodput=(),
        passed_audit=False,
        zero_until_round=card.zero_until_round if card is not None and penalised else 0,
        reason=card.reason if card is not None and penalised else "",
        note=card.note if card is not None and penalised else "",
    )


def _valid(observation: Observation) -> bool:
    """Finite and in range. The audit's error only enters the note, so it is not checked."""
    quality = None if observation.audit is None else observation.audit.quality
    shares = [x for x in (observation.duty, quality) if x is not None]
    amounts = [x for x in (observation.credited_tokens, observation.goodput_bytes_per_s) if x is not None]
    return all(0.0 <= x <= 1.0 for x in shares) and all(isfinite(x) and x >= 0.0 for x in amounts)


def _failed(card: ScoreCard, observation: Observation, audit: AuditResult, scoring: ScoringSection) -> ScoreCard:
    if _valid(observation):
        card = _with_service(card, observation, scoring)
    return condemn(card, observation.round, audit, scoring)


def _with_service(card: ScoreCard, observation: Observation, scoring: ScoringSection) -> ScoreCard:
    """Duty and probe: what a miner does for others counts under penalty too."""
    value, kept = card.integrity, card.goodput
    if observation.duty is not None:
        value = observation.duty if value is None else _ema(value, observation.duty, scoring.integrity_half_life)
    if observation.goodput_bytes_per_s is not None:
        kept = (*kept, observation.goodput_bytes_per_s)[-scoring.goodput_probes :]
    return replace(card, integrity=value, goodput=kept)


def _with_steps(card: ScoreCard, sigma: float, scoring: ScoringSection) -> ScoreCard:
    work = (*card.work, sigma)[-2 * scoring.vesting_rounds :]
    return replace(card, work=work, steps=vested(work, scoring.vesting_rounds))


def vested(work: Sequence[float], rounds: int) -> float:
    """S of the work of the last 2 * `rounds` rounds, oldest first: 1 for a whole history of ones.

    Layer by layer of speed, as if each were a miner of its own that worked in the rounds that reach it: its attendance
    over the last `rounds`, times (its rounds / `rounds`)^VESTING_POWER, at most 1. So a claim that grows vests anew and
    takes nothing from what was there, and who works in half of the rounds or more is paid in proportion.
    """
    parts: list[float] = []
    below = 0.0
    for level in sorted({sigma for sigma in work if sigma > 0.0}):
        worked, lately = (sum(sigma >= level for sigma in part) for part in (work, work[-rounds:]))
        parts.append((level - below) * lately / rounds * min(1.0, worked / rounds) ** VESTING_POWER)
        below = level
    return fsum(parts)


def _with_audit(card: ScoreCard, audit: AuditResult | None, round: int, scoring: ScoringSection) -> ScoreCard:
    """Age the evidence by one round, then add this round's audit, if there was one."""
    keep = _keep(scoring.audit_half_life)
    passes, fails = card.passes * keep, card.fails * keep
    if audit is None:
        return replace(card, passes=passes, fails=fails)
    what = f"{audit.depth} steps" if audit.verdict is Verdict.PASS else _describe(audit)
    return replace(
        card,
        passes=passes + audit.quality,
        fails=fails + (1.0 - audit.quality),
        passed_audit=card.passed_audit or audit.verdict is Verdict.PASS,
        note=f"round {round}: {audit.verdict.value}, {what}",
    )


def _reason(card: ScoreCard, scoring: ScoringSection) -> str:
    """Why this card gives no weight, as far as it can tell by itself."""
    if not card.passed_audit:
        return "no passed audit yet"
    if card.integrity is None:
        return "no duty seen yet"
    if integrity(card, scoring) == 0.0:
        return "integrity below floor"
    return "" if card.steps > 0.0 else "no credited tokens"


def _raw(card: ScoreCard, round_index: int, scoring: ScoringSection) -> ScoreTerms:
    """The terms of one card; `weight` holds the raw product, not yet normalised."""
    g, i, b = fidelity(card, round_index, scoring), integrity(card, scoring), bandwidth(card, scoring)
    raw = i * g * card.steps * ((1.0 - scoring.bandwidth_share) + scoring.bandwidth_share * b)
    return ScoreTerms(S=card.steps, G=g, B=b, I=i, weight=raw if card.passed_audit else 0.0)


def _describe(audit: AuditResult) -> str:
    where = "" if audit.failed_step is None else f" at step {audit.failed_step}"
    number = "" if audit.error is None else f" (error {audit.error:.3g})"
    return f"{audit.reason}{where}{number}"


def _keep(half_life: float) -> float:
    return 0.5 ** (1.0 / half_life)


def _ema(old: float, new: float, half_life: float) -> float:
    keep = _keep(half_life)
    return keep * old + (1.0 - keep) * new
