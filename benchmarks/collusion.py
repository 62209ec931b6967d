"""What a group of miners can take by any pattern of leaving out and withholding: a search on the real rules."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, Verdict
from distributed_training.protocol.rules import duty, scoring, weighting
from distributed_training.protocol.sections import ScoringSection
from distributed_training.recipes.reading import read_preset
from distributed_training.settings.arguments import whole

DESCRIPTION = """\
Miners of equal speed reduce a slice each and do all their work; K of them collude. As reducers they leave anybody out
of each chunk of their slices, as senders they withhold from anybody, say that they have what nobody sent them, or let a
slice fail; what they do goes round over several rounds. Hill climbing from random, honest and well-known beginnings
looks for the pattern that pays the group most, and for the one that takes most from one honest miner. Bitmaps become
credit, duty, folded cards and weights by the nodes' own rules, without tensors.

  share_of_fair    the group's pay over what it would be if all were honest
  harm_to_honest   the largest loss of one honest miner's pay, as a part of it
  by               what was looked for: share or harm

Below a third of the miners more than 1.05 of fair, or more than 5 % off an honest miner's pay, is a failure. From a
third on the numbers say what such a group can do.
"""
MINERS, CHUNKS = 12, 2  # chunks of each slice
MOST_SHARE, MOST_HARM = 1.05, 0.05
TOKENS, ROUNDS = 1000, 120
Aim = Literal["share", "harm"]
Bits = duty.Bits


@dataclass(frozen=True, slots=True)
class Pattern:
    """What happens in each of the rounds that go round."""

    included: Bits  # [round, chunk, sender]; chunk c is of the slice of reducer c // CHUNKS
    failed: Bits  # [round, reducer]: no output of its own, and its backup's does not come either


def seen(included: Bits, failed: Bits) -> tuple[list[float], list[float]]:
    """Credit and duty of everybody in one round, as `averaging.combine` and the examiner make them."""
    slices = included.reshape(MINERS, CHUNKS, MINERS)
    counted = slices[~failed].reshape(-1, MINERS)
    if not len(counted):
        return [0.0] * MINERS, [0.0] * MINERS
    expected = duty.expected_senders(counted)
    missing = (expected & ~counted).sum(axis=1)
    lacking = np.array([weighting.lacks_senders(int(expected.sum()), int(m)) for m in missing], bool)
    credit = duty.credits(counted, lacking)
    none = np.zeros(CHUNKS, bool)
    reduced = [0.0 if failed[j] else duty.reduced_share(slices[j], expected, none) for j in range(MINERS)]
    return credit, [duty.duty(c, r, can_reduce=True) for c, r in zip(credit, reduced, strict=True)]


def weights(pattern: Pattern, section: ScoringSection, rounds: int) -> list[float]:
    """Everybody's weight after so many rounds, folded as a validator folds them; the mean over one turn."""
    told = [seen(*of) for of in zip(pattern.included, pattern.failed, strict=True)]
    passed = AuditResult(Verdict.PASS, 1.0, 1, None, None, "ok")
    cards, found = dict[str, ScoreCard](), list[list[float]]()
    for r in range(rounds + len(told)):
        credit, duties = told[r % len(told)]
        for i, key in enumerate(f"{i:02d}" for i in range(MINERS)):
            tokens = duty.credited_tokens(TOKENS, credit[i], TOKENS)
            observed = Observation(i, key, 0, r, tokens, passed, None, duties[i])
            cards[key] = scoring.fold(cards.get(key), observed, section, TOKENS)
        if r >= rounds:
            found.append([term.weight for term in scoring.terms(cards, r, section).values()])
    return [float(w) for w in np.mean(found, axis=0)]


def settled(pattern: Pattern, section: ScoringSection) -> list[float]:
    """What `weights` tends to, near enough to climb by: mean credit times mean duty, nothing below the floor."""
    told = np.array([seen(*of) for of in zip(pattern.included, pattern.failed, strict=True)])
    credit, duties = told.mean(axis=0)
    paid = [float(c * d) if d >= section.integrity_floor else 0.0 for c, d in zip(credit, duties, strict=True)]
    return [p / sum(paid) for p in paid] if sum(paid) > 0.0 else paid


def share_of_fair(pay: Sequence[float], group: int) -> float:
    return sum(pay[:group]) * MINERS / group


def harm(pay: Sequence[float], group: int) -> float:
    """Of the honest miner that loses most, against an equal part."""
    return 1.0 - min(pay[group:]) * MINERS


class Search:
    """Miners 0 .. group - 1 collude."""

    def __init__(self, group: int, aim: Aim, section: ScoringSection, seed: int, period: int) -> None:
        self._group, self._aim, self._section, self._period = group, aim, section, period
        self._draw = np.random.default_rng([seed, group, aim == "harm"])
        shape = (period, MINERS * CHUNKS, MINERS)
        free = np.zeros(shape, bool)
        free[:, : group * CHUNKS, :] = free[:, :, :group] = True
        self._free = np.argwhere(free)

    def run(self, steps: int, starts: int) -> Pattern:
        """The best pattern of all beginnings, after so many steps from each."""
        found = [self._climb(begin, steps) for begin in self._beginnings(starts)]
        return max(found, key=lambda pair: pair[0])[1]

    def _value(self, pattern: Pattern) -> float:
        pay = settled(pattern, self._section)
        return share_of_fair(pay, self._group) if self._aim == "share" else harm(pay, self._group)

    def _beginnings(self, starts: int) -> Iterator[Pattern]:
        group, draw = self._group, self._draw
        for number in range(starts):
            bits = np.ones((self._period, MINERS * CHUNKS, MINERS), bool)
            failed = np.zeros((self._period, MINERS), bool)
            kind = number % 7
            if kind in (1, 5):  # everybody honest is left out; and given nothing
                bits[:, : group * CHUNKS, group:] = False
                bits[:, group * CHUNKS :, :group] &= kind == 1
            elif kind == 2:  # a third of them, another one in each round
                for r in range(self._period):
                    left = group + (np.arange(MINERS // 3) + r * (MINERS // 3)) % (MINERS - group)
                    bits[r, : group * CHUNKS, left] = False
            elif kind == 3:  # one victim is left out and given nothing
                bits[:, : group * CHUNKS, -1] = bits[:, -CHUNKS:, :group] = False
            elif kind == 4:  # nothing for half of the reducers: those chunks lack too many
                bits[:, MINERS * CHUNKS // 2 :, :group] = False
            elif kind == 6:
                places = self._free[draw.random(len(self._free)) < 0.5]
                bits[tuple(places.T)] = False
            yield Pattern(bits, failed)

    def _climb(self, pattern: Pattern, steps: int) -> tuple[float, Pattern]:
        value = self._value(pattern)
        for _ in range(steps):
            tried = self._changed(pattern)
            reached = self._value(tried)
            if reached >= value:
                value, pattern = reached, tried
        return value, pattern

    def _changed(self, pattern: Pattern) -> Pattern:
        """A few bits, all that one colluder does to one miner, a failed slice, or one round made like another."""
        bits, failed, draw = pattern.included.copy(), pattern.failed.copy(), self._draw
        kind, r = draw.random(), draw.integers(self._period)
        colluder, other = draw.integers(self._group), draw.integers(MINERS)
        if kind < 0.5:
            places = self._free[draw.integers(len(self._free), size=draw.integers(1, 6))]
            bits[tuple(places.T)] ^= True
        elif kind < 0.7:
            bits[r, colluder * CHUNKS : (colluder + 1) * CHUNKS, other] = draw.random() < 0.5
        elif kind < 0.9:
            bits[r, other * CHUNKS : (other + 1) * CHUNKS, colluder] = draw.random() < 0.5
        elif kind < 0.95:
            failed[r, colluder] ^= True
        else:
            like = draw.integers(self._period)
            bits[r], failed[r] = bits[like], failed[like]
        return Pattern(bits, failed)


def section_of(preset: str = "gpt2-124m") -> ScoringSection:
    return ScoringSection(**read_preset(preset).sections["scoring"], goodput_required=0.0)


def collusion_rows(
    seed: int, groups: Sequence[int] = range(1, 8), *, steps: int = 1500, starts: int = 7, period: int = 3
) -> Iterator[dict[str, Any]]:
    """The best that was found for each size of group and each aim, as ROUNDS folded rounds pay it."""
    section = section_of()
    for group in groups:
        for aim in ("share", "harm"):
            pattern = Search(group, aim, section, seed, period).run(steps, starts)
            pay = weights(pattern, section, ROUNDS)
            yield {
                "attack": "leave out, withhold",
                "class": "c",
                "group": group,
                "by": aim,
                "share_of_fair": share_of_fair(pay, group),
                "harm_to_honest": harm(pay, group),
            }


def failures_of(row: dict[str, Any]) -> list[str]:
    """What must not be, below a third."""
    if 3 * row["group"] >= MINERS:
        return []
    who = f"{row['group']} of {MINERS} by {row['by']}"
    share, lost = row["share_of_fair"], row["harm_to_honest"]
    return [f"{who}: {share:.3f} of fair, at most {MOST_SHARE} expected"] * (share > MOST_SHARE) + [
        f"{who}: {lost:.1%} off an honest miner's pay, at most {MOST_HARM:.0%} expected"
    ] * (lost > MOST_HARM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--group", type=whole(1, MINERS - 1, "miners"), metavar="K", help="only this many; default 1 to 7")
    add("--steps", type=whole(0, 10**7, "steps"), default=1500, metavar="N", help="of each climb; default 1500")
    add("--starts", type=whole(1, 10**5, "starts"), default=7, metavar="N", help="beginnings of each; default 7")
    add("--period", type=whole(1, 12, "rounds"), default=3, metavar="N", help="rounds that go round; default 3")
    add("--seed", type=whole(0, 1 << 32, "a seed"), default=1, metavar="N", help="default 1")


def run(args: argparse.Namespace) -> dict[str, Any]:
    groups = range(1, 8) if args.group is None else (args.group,)
    rows: list[dict[str, Any]] = []
    for row in collusion_rows(args.seed, groups, steps=args.steps, starts=args.starts, period=args.period):
        rows.append(row)
        print(f"{row['group']} of {MINERS}, {row['by']}", file=sys.stderr, flush=True)
    return {"name": "collusion", "rows": rows, "failures": [each for row in rows for each in failures_of(row)]}
