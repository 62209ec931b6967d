"""Miners as policies under the real rules: drawn depths, folds, condemnations, terms, and pay by Yuma.

No model is trained: what an audit would see is given by a claim (from which step on its log does not replay, whether
its vector is another, how far off a soft one is), and a dishonest step that is replayed is a hard failure. That is what
docs/drift.md measures of every cheat here. A validator's hard failure makes all others replay to that depth at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from math import sqrt
from random import Random

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, Verdict
from distributed_training.protocol.rules import scoring, yuma
from distributed_training.protocol.rules.audit_plan import Depth, audit_beacon, audit_depth, proven
from distributed_training.protocol.rules.fidelity import judge_direction
from distributed_training.protocol.sections import AuditSection, ScoringSection
from distributed_training.recipes.reading import read_preset

PASS, FAIL = Verdict.PASS, Verdict.FAIL
POINTS = 3.0  # cosine of the first L of H steps with the whole round, over sqrt(L / H): as measured (docs/drift.md)


@dataclass(frozen=True, slots=True)
class Rules:
    audit: AuditSection
    scoring: ScoringSection
    steps: int  # H, of the cap


@dataclass(frozen=True, slots=True)
class Claim:
    """What an identity hands in for one round, and what that took."""

    steps: int  # claimed
    sound: int  # from this step on (0-based) the log does not replay
    computed: float  # steps' worth of work done
    quality: float = 1.0  # of an audit that passes; below 1 it is soft
    agrees: float = 1.0  # cosine of the vector that it sent with the one that its log leads to
    answers: bool = True  # its probe
    duty: float = 1.0
    credit: float = 1.0  # share of the counted chunks that include it


@dataclass(frozen=True, slots=True)
class Moment:
    """What a policy may look at."""

    round: int  # since the start of the game
    age: int  # rounds since this identity registered
    steps: int  # H
    random: Random


Act = Callable[[Moment], Claim | None]  # None: absent


@dataclass(frozen=True, slots=True)
class Policy:
    act: Act
    renews: bool = True  # registers anew as soon as it is condemned; else it sits the penalty out
    leaves_at: int | None = None  # and at this age, of its own will
    joins: int = 0  # round


@dataclass(slots=True)
class Player:
    """One owner: one identity at a time, and what it earned and computed since the count began."""

    policy: Policy
    name: str
    identity: int = 0
    born: int = 0
    caught: list[int] = field(default_factory=list[int])  # ages
    condemned_until: int = 0
    pay: list[float] = field(default_factory=list[float])  # by round
    computed: list[float] = field(default_factory=list[float])

    @property
    def hotkey(self) -> str:
        return f"{self.name}/{self.identity}"

    def anew(self, round_index: int) -> None:
        self.identity, self.born, self.condemned_until = self.identity + 1, round_index, 0


def play(
    rules: Rules, policies: Sequence[Policy], stakes: Sequence[float], rounds: int, seed: int
) -> tuple[Player, ...]:
    """Everybody's pay (incentive, sums to 1 a round) and work; the same arguments give the same numbers."""
    players = tuple(Player(policy, f"{seed}/{i}", born=policy.joins) for i, policy in enumerate(policies))
    judges = [Judge(rules, key_of(f"validator {v}"), stake / sum(stakes)) for v, stake in enumerate(stakes)]
    random = Random(seed)
    for index in range(rounds):
        beacon = audit_beacon(blake2b(f"{seed}/{index}".encode(), digest_size=32).digest(), index)
        claims: dict[str, Claim] = {}
        for player in players:
            claim = _claim(player, index, rules, random)
            player.computed.append(0.0 if claim is None else claim.computed)
            if claim is not None:
                claims[player.hotkey] = claim
        failures: dict[str, AuditResult] = {}
        for judge in judges:
            failures |= judge.look(beacon, index, claims)
        for judge in judges:
            judge.share(index, failures)
        paid = incentive([judge.row(index) for judge in judges], [judge.stake for judge in judges])
        earned: dict[str, float] = defaultdict(float)
        for hotkey, share in paid.items():  # identities that left are paid what is still counted
            earned[hotkey.rpartition("/")[0]] += share
        for player in players:
            player.pay.append(earned[player.name])
            if player.hotkey in failures:
                player.caught.append(index - player.born + 1)
                player.condemned_until = index + rules.scoring.penalty_rounds
                if player.policy.renews:
                    _forget(judges, player)
                    player.anew(index + 1)
    return players


def _claim(player: Player, index: int, rules: Rules, random: Random) -> Claim | None:
    if index < player.policy.joins or index < player.condemned_until:
        return None
    if player.policy.leaves_at is not None and index - player.born >= player.policy.leaves_at:
        player.anew(index)
    return player.policy.act(Moment(index, index - player.born, rules.steps, random))


def _forget(judges: Sequence[Judge], player: Player) -> None:
    for judge in judges:
        judge.cards.pop(player.hotkey, None)  # deregistered, and it earns nothing any more: saves time alone


class Judge:
    """One validator: its cards, by the rules of a node."""

    def __init__(self, rules: Rules, public_key: bytes, stake: float) -> None:
        self._rules, self._key, self.stake = rules, public_key, stake
        self.cards: dict[str, ScoreCard] = {}

    def look(self, beacon: bytes, index: int, claims: Mapping[str, Claim]) -> dict[str, AuditResult]:
        """Fold the round as this validator sees it; whom it found out."""
        found: dict[str, AuditResult] = {}
        for hotkey, claim in claims.items():
            card, claimed = self.cards.get(hotkey), claim.steps / self._rules.steps
            depth = audit_depth(
                beacon, self._key, key_of(hotkey), claim.steps, self._rules.audit, self.stake,
                proven=proven(card, claimed),
            )  # fmt: skip
            audit = verdict(claim, depth, self._rules.audit)
            if audit is not None and audit.verdict is FAIL:
                found[hotkey] = audit
            goodput = 4.0 * self._rules.scoring.goodput_required if claim.answers else 0.0
            seen = Observation(0, hotkey, 0, index, claimed * claim.credit, audit, goodput, claim.duty)
            self.cards[hotkey] = scoring.fold(card, seen, self._rules.scoring, 1)
        for hotkey in self.cards.keys() - claims.keys():
            card = scoring.fold_absent(self.cards[hotkey], index, self._rules.scoring)
            self.cards[hotkey] = card
            if card.steps == 0.0 and index >= card.zero_until_round:
                del self.cards[hotkey]  # nothing is left of it
        return found

    def share(self, index: int, failures: Mapping[str, AuditResult]) -> None:
        """Another validator's failures, replayed here and found again."""
        for hotkey, audit in failures.items():
            card = self.cards[hotkey]
            if card.zero_until_round <= index:
                self.cards[hotkey] = scoring.condemn(card, index, audit, self._rules.scoring)

    def row(self, index: int) -> dict[str, float]:
        return {hotkey: t.weight for hotkey, t in scoring.terms(self.cards, index, self._rules.scoring).items()}


def verdict(claim: Claim, depth: Depth, audit: AuditSection) -> AuditResult | None:
    """What a replay to that depth sees. None: it was not looked at."""
    if depth.length == 0:
        return None
    if claim.sound < depth.length:
        return AuditResult(FAIL, 0.0, depth.length, claim.sound, 1.0, "gradient")
    if depth.full and claim.agrees < audit.vector_cosine_bad:
        return AuditResult(FAIL, 0.0, depth.length, None, claim.agrees, "vector")
    if not depth.full:  # by the chunks of a probe, or those of the reducers where none is answered
        astray = judge_direction([_directions(claim, depth.length)], depth=depth.length, steps=claim.steps)
        if astray is not None:
            return astray
    soft = claim.quality < 1.0
    return AuditResult(Verdict.SOFT if soft else PASS, claim.quality, depth.length, None, 0.01, "ok")


def _directions(claim: Claim, depth: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the first `depth` steps moved, and what was sent, in the plane of the two and one direction more."""
    toward = min(1.0, POINTS * sqrt(depth / claim.steps))
    moved, sent = (toward, sqrt(1.0 - toward**2), 0.0), (claim.agrees, 0.0, sqrt(1.0 - claim.agrees**2))
    return np.array(moved, np.float32), np.array(sent, np.float32)


def incentive(rows: Sequence[Mapping[str, float]], stakes: Sequence[float]) -> dict[str, float]:
    """What the chain makes of the validators' rows: each weight clipped at what half of the stake supports."""
    names = sorted(set().union(*rows))
    if not names:
        return {}
    weights = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    stake = np.array(stakes)
    clipped = np.minimum(weights, yuma.consensus(stake, weights, 0.5)[None, :])
    return dict(zip(names, yuma.normalize(stake @ clipped).tolist(), strict=True))


@cache
def key_of(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=32).digest()


@cache
def rules(steps: int) -> Rules:
    """The presets' own numbers, for a token cap of so many steps."""
    given = read_preset("gpt2-124m").sections
    return Rules(
        AuditSection.model_validate(given["audit"]),
        ScoringSection.model_validate(given["scoring"] | {"goodput_required": 1e6}),
        steps,
    )
