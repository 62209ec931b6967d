"""Kinds of miners over 240 rounds, as in the simulation behind the formula (facts section 5.6)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import pytest

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, ScoreTerms, Verdict
from distributed_training.protocol.rules.scoring import fold, fold_absent, reasons, terms
from distributed_training.protocol.sections import ScoringSection

SCORING = ScoringSection(
    vesting_rounds=24,
    audit_half_life=50.0,
    integrity_half_life=6.0,
    integrity_floor=0.5,
    soft_fail_weight=10.0,
    penalty_rounds=50,
    goodput_required=1000.0,
    goodput_probes=8,
    bandwidth_share=0.25,
    cutoff=0.01,
    burn_share=0.0,
)
ROUNDS = 240
PASS = AuditResult(Verdict.PASS, 1.0, 9, None, 0.004, "ok")
SOFT = AuditResult(Verdict.SOFT, 0.3, 9, 2, 0.06, "gradient")
FAIL = AuditResult(Verdict.FAIL, 0.0, 9, 0, 1.37, "gradient")


@dataclass(frozen=True)
class Kind:
    tokens: float = 1.0  # share of the cap
    audit: AuditResult = PASS
    duty: float = 1.0
    goodput: float = 4000.0
    joins: int = 0
    misses_every: int = ROUNDS + 1
    caught: tuple[int, ...] = ()


def simulate(name: str, uid: int, kind: Kind) -> ScoreCard:
    """Audited in each of its first 24 rounds, then in every second one."""
    card = None
    for r in range(kind.joins, ROUNDS):
        if card is not None and (r + 1) % kind.misses_every == 0:
            card = fold_absent(card, r, SCORING)
            continue
        audit = kind.audit if r < kind.joins + 24 or r % 2 == 0 else None
        audit = FAIL if r in kind.caught else audit
        card = fold(card, Observation(uid, name, 0, r, kind.tokens, audit, kind.goodput, kind.duty), SCORING, 1)
    assert card is not None
    return card


def score(kinds: dict[str, Kind]) -> tuple[dict[str, ScoreCard], dict[str, ScoreTerms]]:
    cards = {name: simulate(name, uid, kind) for uid, (name, kind) in enumerate(kinds.items())}
    return cards, terms(cards, ROUNDS - 1, SCORING)


def test_what_each_kind_earns_beside_an_honest_miner_at_full_speed() -> None:
    kinds = {
        "honest": Kind(),
        "half speed": Kind(tokens=0.5),
        "misses a fifth": Kind(misses_every=5),
        "slow link": Kind(goodput=250.0),
        "joined late": Kind(joins=120),
        "lazy reducer": Kind(duty=0.8),
        "caught once": Kind(caught=(100,)),
    }
    _, scored = score(kinds)
    earned = {name: t.weight / scored["honest"].weight for name, t in scored.items()}
    assert earned["half speed"] == pytest.approx(0.5, abs=1e-9)
    assert earned["misses a fifth"] == pytest.approx(0.8, abs=0.04)
    assert earned["slow link"] == pytest.approx(0.75 + 0.25 * log(2) / log(17), abs=1e-9)  # 0.81
    assert earned["lazy reducer"] == pytest.approx(0.8, abs=1e-9)
    assert earned["joined late"] == pytest.approx(1.0, abs=1e-9)  # as soon as its work has vested
    assert earned["caught once"] == pytest.approx(1.0, abs=1e-9)  # 50 rounds of penalty and 24 later


def test_cheats_earn_nothing_and_are_told_why() -> None:
    kinds = {
        "honest": Kind(),
        "free rider": Kind(audit=FAIL),
        "caught again and again": Kind(caught=(150, 190, 230)),
        "small batch": Kind(audit=SOFT),
        "withholder": Kind(duty=0.3),
        "idler": Kind(tokens=0.001),
    }
    cards, scored = score(kinds)
    assert [name for name, t in scored.items() if t.weight > 0.0] == ["honest"]
    assert reasons(cards, scored, SCORING) == {
        "honest": "",
        "free rider": "audit failed: gradient at step 0 (error 1.37)",
        "caught again and again": "audit failed: gradient at step 0 (error 1.37)",
        "small batch": "no passed audit yet",
        "withholder": "integrity below floor",
        "idler": "below 1 % of the best",
    }


def test_two_identities_on_one_machine_earn_what_one_does() -> None:
    _, together = score({"honest": Kind(), "whole": Kind(tokens=0.6)})
    _, split = score({"honest": Kind(), "part 1": Kind(tokens=0.3), "part 2": Kind(tokens=0.3)})
    assert split["part 1"].weight + split["part 2"].weight == pytest.approx(together["whole"].weight, rel=1e-9)
