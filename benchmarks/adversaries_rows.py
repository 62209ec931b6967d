"""What each policy earns in the game, as rows of one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from benchmarks.adversaries_best import Game
from benchmarks.adversaries_game import Player, Policy, play, rules
from benchmarks.adversaries_policies import CLASS_A, class_b, honest, slow, tails

ROUNDS = 240  # that are counted
STEPS = 500  # H of most rows
LENGTHS = (100, STEPS, 2059)
VALIDATORS = (1, 5)
BEST_VALIDATORS = (1, 5, 64)
HONEST = Policy(honest)
SECOND = 2  # rounds before the third audited one

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played: the error of a number falls with the root of cheats and seeds."""

    rounds: int = ROUNDS
    cheats: int = 24  # owners of one policy at once; they do not meet
    seeds: int = 6  # of the rows that count per miner


def row(
    attack: str,
    kind: str,
    group: str,
    *,
    detected: float | None = None,
    share: float | None = None,
    pay: float | None = None,
    error: float | None = None,
    harm: float = 0.0,
    accused: int = 0,
) -> Row:
    return {
        "attack": attack,
        "class": kind,
        "group": group,
        "detected_after_rounds": None if detected is None else round(detected, 1),
        "share_of_honest": None if share is None else round(share, 3),
        "pay_per_compute": None if pay is None else round(pay, 3),
        "error": None if error is None else round(error, 3),
        "harm_to_honest": round(harm, 3),
        "false_accusations": accused,
    }


def rows_of_class_a(size: Size) -> Iterator[Row]:
    """Alone and as two of eight, in a new run, where everybody begins: pay from the third audited round on."""
    for name, policy in CLASS_A.items():
        for count in (1, 2):
            for validators in VALIDATORS:
                policies = [HONEST] * (8 - count) + [policy] * count
                found = [
                    measured(play(rules(STEPS), policies, [1.0] * validators, size.rounds, seed), 8 - count, SECOND)
                    for seed in range(size.seeds)
                ]
                yield combined(name, "a", f"{count} of 8, {said(validators)}", found)


def rows_of_class_b(size: Size) -> Iterator[Row]:
    """Beside incumbents whose work has vested; thrown-away identities from the first round of a run too."""
    for validators in VALIDATORS:
        for steps in LENGTHS:
            for name, policy in tails(steps).items():
                yield beside(name, policy, steps, validators, size)
        for name, policy in class_b(STEPS).items():
            yield beside(name, policy, STEPS, validators, size)
        for name, policy in tails(STEPS).items():
            yield beside(name, policy, STEPS, validators, size, new_run=True)
    yield from rows_of_the_best()


def rows_of_the_best() -> Iterator[Row]:
    """Not by play: exact, over all policies of an identity."""
    for steps in LENGTHS:
        for validators in BEST_VALIDATORS:
            game = Game(rules(steps), validators)
            cheat, any_policy = game.best(), game.best(honest_when_ripe=True)
            name = f"best policy of all that cheat in the end, {steps} steps"
            yield row(name, "b", said(validators), pay=cheat.pay_per_compute, error=0.0)
            name = f"best policy of all, {steps} steps (honest for ever: 1)"
            yield row(name, "b", said(validators), pay=any_policy.pay_per_compute, error=0.0)


def rows_of_the_honest(size: Size) -> Iterator[Row]:
    """One GPU over three uids, in a new run and beside one uid that does as much."""
    for validators in VALIDATORS:
        policies = [HONEST] * 4 + [Policy(slow(0.9))] + [Policy(slow(0.3))] * 3
        players = play(rules(STEPS), policies, [1.0] * validators, size.rounds, 1)
        one, three = sum(players[4].pay), sum(sum(p.pay) for p in players[5:])
        yield row("one GPU over three uids, beside one uid", "honest", said(validators), pay=three / one, error=0.0)


def beside(name: str, policy: Policy, steps: int, validators: int, size: Size, new_run: bool = False) -> Row:
    joins = 0 if new_run else rules(steps).scoring.vesting_rounds
    policies = [HONEST] * 4 + [replace(policy, joins=joins)] * size.cheats
    players = play(rules(steps), policies, [1.0] * validators, joins + size.rounds, 1)
    where = f"{said(validators)}, from a run's first round" if new_run else said(validators)
    return combined(name, "b", where, [measured((*players[:4], cheat), 4, joins) for cheat in players[4:]])


@dataclass(frozen=True, slots=True)
class Measured:
    detected: float | None
    share: float  # of an honest miner's pay
    pay: float | None  # per compute, of an honest miner's; None: nothing was computed
    accused: int


def measured(players: Sequence[Player], honest_count: int, since: int) -> Measured:
    """Beside an honest miner of those rounds: so nothing depends on how many cheats are played at once."""
    fair, cheats = players[:honest_count], players[honest_count:]
    each = [fmean(p.pay[r] for p in fair) for r in range(len(fair[0].pay))]
    shares = [fmean(p.pay[r] for p in cheats) / each[r] for r in range(since, len(each)) if each[r] > 0.0]
    full = fmean(fmean(p.computed[since:]) for p in fair)
    done = fmean(fmean(p.computed[since:]) for p in cheats) / full
    ages = [age for p in cheats for age in p.caught]
    pay = fmean(shares) / done if done else None
    return Measured(
        detected=fmean(ages) if ages else None,
        share=fmean(shares),
        pay=pay,
        accused=sum(len(p.caught) for p in fair),
    )


def combined(name: str, kind: str, group: str, found: Sequence[Measured]) -> Row:
    pays = [m.pay for m in found if m.pay is not None]
    seen = [m.detected for m in found if m.detected is not None]
    return row(
        name,
        kind,
        group,
        detected=fmean(seen) if seen else None,
        share=fmean(m.share for m in found),
        pay=fmean(pays) if pays else None,
        error=stdev(pays) / len(pays) ** 0.5 if len(pays) > 1 else None,
        harm=max(0.0, fmean(pays) - 1.0) if pays else 0.0,
        accused=sum(m.accused for m in found),
    )


def said(validators: int) -> str:
    return f"{validators} validator{'s' * (validators > 1)}"


def failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows that are not as docs/incentives.md promises."""
    found: list[str] = []
    for r in rows:
        where = f"{r['attack']} ({r['group']})"
        pay, error = r["pay_per_compute"], r.get("error") or 0.0
        if r["class"] == "a" and r["share_of_honest"] >= 0.1:
            found.append(f"{where}: {r['share_of_honest']} of an honest miner's pay, expected less than 0.1")
        if r["class"] == "b" and pay is not None and pay > 1.0 + 3 * error:
            found.append(f"{where}: {pay} of honest pay per compute, expected at most 1")
        if r["class"] == "honest" and pay is not None and abs(pay - 1.0) > 0.05:
            found.append(f"{where}: {pay} of what one uid earns, expected within 5 %")
        if r["false_accusations"]:
            found.append(f"{where}: {r['false_accusations']} honest rounds failed an audit")
    return found
