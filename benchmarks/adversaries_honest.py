"""What honest miners get: under churn, as newcomers on a full subnet, and where fees move and pay is nearly flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from benchmarks.adversaries_game import Act, Claim, Moment, Policy, play, rules
from benchmarks.adversaries_rows import STEPS, Row, row
from distributed_training.protocol.rules.scoring import vested

CHURN_ROUNDS, MINERS, STAKES = 60, 12, (5.0, 3.0, 2.0)
MOST_OFF = 0.1  # of proportional to tokens

LENGTH, MAP, TEMPO, IMMUNITY = 125, 100, 360, 4096  # blocks: a round, its map's offset at most; the chain's defaults


def churned(speed: float, seed: int) -> Act:
    """Steps vary by 5 %, one round in 25 is missed, and one outage takes three in a row."""
    random = Random(seed)
    out = random.randrange(5, CHURN_ROUNDS - 3)

    def act(now: Moment) -> Claim | None:
        steps = round(speed * now.steps * random.uniform(0.9, 1.0))
        missed = random.random() < 0.04 or out <= now.round < out + 3
        return None if missed else Claim(steps, steps, steps)

    return act


def rows_of_churn(seeds: int) -> Iterator[Row]:
    """Incentive of the last round beside tokens of the last `vesting_rounds`, of everybody who has been there for twice
    as long; the worst of all miners and seeds."""
    worst, accused = 0.0, 0
    for seed in range(seeds):
        policies = [Policy(churned(0.5 + i / 24, 100 * seed + i), joins=0 if i < 10 else 8) for i in range(MINERS)]
        players = play(rules(STEPS), policies, STAKES, CHURN_ROUNDS, seed)
        window = rules(STEPS).scoring.vesting_rounds
        tokens = [sum(p.computed[-window:]) for p in players]
        off = [p.pay[-1] / (t / sum(tokens)) - 1.0 for p, t in zip(players, tokens, strict=True)]
        worst = max(worst, *(abs(o) for o in off))
        accused += sum(len(p.caught) for p in players)
    name = f"{MINERS} honest miners under churn, {CHURN_ROUNDS} rounds, share furthest from its tokens'"
    yield row(name, "honest", f"{len(STAKES)} validators", share=1.0 - worst, harm=worst, accused=accused)


def rows_of_newcomers() -> Iterator[Row]:
    """Beside incumbents of the same speed, when its immunity ends: registered at the worst moment of a round, weights
    revealed an epoch later, epochs at their worst."""
    vesting = rules(STEPS).scoring.vesting_rounds
    for length in (LENGTH, 150, 180):
        counted = max(0, (IMMUNITY - length - MAP - 2 * TEMPO) // length)
        share = vested([1.0] * min(counted, vesting), vesting)
        name = f"newcomer of equal speed when {IMMUNITY} blocks of immunity end, rounds of {length}"
        yield row(name, "honest", f"{counted} rounds are counted", share=share)


@dataclass(slots=True)
class Owner:
    cash: float  # in the pay of one place over one round
    cost: float  # of running one place for a round
    places: list[int] = field(default_factory=list[int])  # rounds in which they were registered


PLACES, OWNERS, WEALTH, CYCLES = 64, 80, 20.0, 3000
LEAST_FEE, RISES, HALVES = 0.5, 1.5, 10.0  # a registration multiplies the fee, and it halves in so many rounds
OLIGOPOLY = 0.6  # of the places


def rows_of_fees(seeds: int) -> Iterator[Row]:
    """Equal pay for each place, the fee moves with demand, and the newest that is not immune is as good as any: who is
    replaced is drawn. Owners differ tenfold in cash and by half in what running costs; all that is earned may be spent
    on more places. Does a few own all in the end?"""
    for cap in (None, 4):
        top = sum(_top_four(seed, cap) for seed in range(seeds)) / seeds
        name = f"near-flat pay and a moving fee: places of the 4 largest of {OWNERS} owners at last"
        group = "no limit of GPUs" if cap is None else f"{cap} GPUs an owner"
        yield row(name, "market", group, share=top)


def _top_four(seed: int, cap: int | None) -> float:
    random = Random(seed)
    owners = [Owner(WEALTH * 10 ** random.uniform(-0.5, 0.5), random.uniform(0.3, 0.9)) for _ in range(OWNERS)]
    fee, stay = LEAST_FEE, 100.0  # rounds that a place is expected to be kept
    immune, vesting = IMMUNITY / LENGTH, rules(STEPS).scoring.vesting_rounds
    unpaid = vesting - sum(vested([1.0] * n, vesting) for n in range(1, vesting + 1))
    for now in range(CYCLES):
        for owner in owners:
            owner.cash += sum(vested([1.0] * min(now - at, vesting), vesting) for at in owner.places)
            owner.cash -= owner.cost * len(owner.places)
        eager = sorted(owners, key=lambda o: o.cost)  # who runs for less bids first
        for owner in eager:
            worth = (stay - unpaid) - owner.cost * stay
            if worth > fee and owner.cash > fee and (cap is None or len(owner.places) < cap):
                taken = [(o, at) for o in owners for at in o.places]
                if len(taken) >= PLACES:
                    ripe = [(o, at) for o, at in taken if now - at > immune]
                    if not ripe:
                        break
                    loser, at = ripe[random.randrange(len(ripe))]
                    loser.places.remove(at)
                    stay += 0.05 * ((now - at) - stay)
                owner.cash -= fee
                owner.places.append(now)
                fee *= RISES
                break  # one registration a round
        fee = max(LEAST_FEE, fee * 0.5 ** (1 / HALVES))
    held = sorted((len(o.places) for o in owners), reverse=True)
    return sum(held[:4]) / max(1, sum(held))


def failures_of_the_honest(rows: list[Row]) -> list[str]:
    return [
        f"{r['attack']}: {r['harm_to_honest']} off, expected at most {MOST_OFF}"
        for r in rows
        if r["class"] == "honest" and r["harm_to_honest"] > MOST_OFF
    ]
