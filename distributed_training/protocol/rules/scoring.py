"""Observations -> S, G, B, I -> weights (protocol section 8, docs/scoring.md).

    S  steps      EMA of credited tokens / token cap, half-life `steps_half_life` rounds, from 0; absence enters as 0
    G  gradient   (1 + p) / (2 + p + soft_fail_weight * f): p, f = decayed sums of q and 1 - q over the audits
    I  integrity  EMA of duty over the rounds with a commit, started at the first duty; 0 below `integrity_floor`; the
                  duty of who cannot be given a slice is at most NO_REDUCER_DUTY
    B  bandwidth  clip(log(1 + g/g_min) / log(1 + g_ref/g_min), 0, 1), g_ref = 4 x required, g_min = required / 4
    raw = I * G * S * ((1 - bandwidth_share) + bandwidth_share * B);  weight = raw / sum of raw

S is linear, so a GPU split over k uids earns what one uid earns; the token cap is a run constant, so nobody's
weight before normalisation depends on anybody else. A hard failure sets G to 0 for `penalty_rounds` rounds, counted
from the failed one; then the miner is a newcomer: S = 0, no evidence, no weight before its first passed audit.

Folding is pure and happens once per applied round and miner, in round order; a discarded round is not folded.
Cards are keyed by (hotkey, registration block).

Left out until their source exists: signed receipts (in duty and in goodput), audit reports shared between validators,
fraud proofs (I = 0 for 4K rounds).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import fsum, isfinite, log

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, ScoreTerms, Verdict
from distributed_training.protocol.sections import ScoringSection
from distributed_training.protocol.types import Candidate, Carry

NO_REDUCER_DUTY = 0.8


def credited_tokens(tokens: int, share: float, token_cap: int) -> float:
    """Tokens that count: claimed tokens up to the cap, times the share of counted chunks that include the sender."""
    return min(tokens, token_cap) * share


def can_reduce(candidate: Candidate, carry: Carry) -> bool:
    """Whether the rule of who reduces would take it: it says so, and no slice of its own has failed lately.

    The second half makes an honest "I do not reduce" the better choice for a miner whose port is shut: its slices
    would fail, and without a slice in between it would have full duty most of the time.
    """
    return candidate.reduces and all(candidate.public_key not in entry.failed for entry in carry.rounds)


def duty(sender_share: float, was_reducer: bool, slice_counted: bool, can_reduce: bool) -> float:
    """One round's duty, 0..1, of a miner that committed: half as sender, half as reducer.

    `sender_share` is the share of counted chunks that include it. Whoever had no slice is judged as sender alone, and
    up to NO_REDUCER_DUTY only if it could not have been given one (`can_reduce`).
    """
    if not was_reducer:
        return sender_share if can_reduce else min(sender_share, NO_REDUCER_DUTY)
    return 0.5 * sender_share + 0.5 * float(slice_counted)


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


def fold_absent(card: ScoreCard, round: int, scoring: ScoringSection) -> ScoreCard:
    """The card after an applied round without a commit: S gets 0, audit sums decay, integrity and probes stay."""
    if round < card.zero_until_round:
        return card
    card = _with_audit(_with_steps(card, 0.0, scoring), None, round, scoring)
    unpaid = not card.passed_audit or card.steps == 0.0
    return replace(card, reason="absent" if unpaid else _reason(card, scoring))


def fidelity(card: ScoreCard, round_index: int, scoring: ScoringSection) -> float:
    """G: 0 under penalty, 0.5 without evidence, towards 1 with passed audits."""
    if round_index < card.zero_until_round:
        return 0.0
    return (1.0 + card.passes) / (2.0 + card.passes + scoring.soft_fail_weight * card.fails)


def integrity(card: ScoreCard, scoring: ScoringSection) -> float:
    """I: the EMA of duty; 0 before the first duty and below the floor."""
    if card.integrity is None or card.integrity < scoring.integrity_floor:
        return 0.0
    return card.integrity


def bandwidth(card: ScoreCard, scoring: ScoringSection) -> float:
    """B of the 60th percentile (nearest rank) of the kept probes.

    A miner this validator never probed gets 1: the validator may have been the one that was too busy, and what
    was not measured is not held against anybody. A probe that the *miner* left unanswered is a measured 0.
    """
    if not card.goodput or scoring.goodput_required <= 0.0:
        return 1.0
    rank = -(-6 * len(card.goodput) // 10)
    g = sorted(card.goodput)[rank - 1]
    g_min, g_ref = scoring.goodput_required / 4.0, scoring.goodput_required * 4.0
    return min(1.0, max(0.0, log(1.0 + g / g_min) / log(1.0 + g_ref / g_min)))


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
    below = f"below {100 * scoring.cutoff:g} % of the best"
    return {key: "" if t.weight > 0.0 else cards[key].reason or below for key, t in scored.items()}


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
    """A hard failure: nothing earned is left, and nothing can be earned for K rounds."""
    if _valid(observation):
        card = _with_service(card, observation, scoring)
    what = _describe(audit)
    return replace(
        card,
        steps=0.0,
        passes=0.0,
        fails=0.0,
        passed_audit=False,
        zero_until_round=max(card.zero_until_round, observation.round + scoring.penalty_rounds),
        reason=f"audit failed: {what}",
        note=f"round {observation.round}: fail, {what}",
    )


def _with_service(card: ScoreCard, observation: Observation, scoring: ScoringSection) -> ScoreCard:
    """Duty and probe: what a miner does for others counts under penalty too."""
    value, kept = card.integrity, card.goodput
    if observation.duty is not None:
        value = observation.duty if value is None else _ema(value, observation.duty, scoring.integrity_half_life)
    if observation.goodput_bytes_per_s is not None:
        kept = (*kept, observation.goodput_bytes_per_s)[-max(1, scoring.goodput_probes) :]
    return replace(card, integrity=value, goodput=kept)


def _with_steps(card: ScoreCard, sigma: float, scoring: ScoringSection) -> ScoreCard:
    return replace(card, steps=_ema(card.steps, sigma, scoring.steps_half_life))


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
