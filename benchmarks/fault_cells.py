"""Which faults are tried, and in which round: one fault a round, every cell with a hotkey that never failed before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distributed_training.errors import ConfigError

FAULTS = ("kill", "freeze", "slow", "cut", "lie")
POINTS = (
    "train", "before-commit", "before-scatter", "mid-scatter", "reducing", "before-output", "after-output",
    "mid-serve", "mid-fetch", "before-map",
)  # fmt: skip
VALIDATOR_POINTS = {"before-map"}
NO_LIE = {"mid-fetch"}  # who only asks has nothing to lie about
QUICK = ("kill@mid-scatter", "freeze@reducing", "cut@after-output", "lie@before-output")
FIRST_ROUND = 2  # of a fault: the saboteur takes part in one round before, and every node has finished one
VALIDATOR_PAUSE = 5  # rounds between two faults of the one validator slot


@dataclass(frozen=True, slots=True)
class Cell:
    fault: str
    point: str

    def __str__(self) -> str:
        return f"{self.fault}@{self.point}"

    @property
    def validator(self) -> bool:
        return self.point in VALIDATOR_POINTS


@dataclass(frozen=True, slots=True)
class Trial:
    """One cell in one round by one hotkey."""

    cell: Cell
    round: int
    name: str


def every_cell() -> tuple[Cell, ...]:
    return tuple(Cell(f, p) for p in POINTS for f in FAULTS if not (f == "lie" and p in NO_LIE))


def chosen_cells(only: str | None, quick: bool) -> tuple[Cell, ...]:
    """`only`: comma-separated FAULT@POINT, where either side may be *. Raises ConfigError."""
    cells = every_cell()
    if only is None:
        return tuple(c for c in cells if str(c) in QUICK) if quick else cells
    found: list[Cell] = []
    for text in only.split(","):
        fault, _, point = text.strip().partition("@")
        matching = [c for c in cells if fault in ("*", c.fault) and point in ("*", c.point)]
        if not matching:
            known = f"{', '.join(FAULTS)} and {', '.join(POINTS)}"
            raise ConfigError(f"--only {text}: no such cell; expected FAULT@POINT with {known}, or *")
        found += [c for c in matching if c not in found]
    return tuple(found)


def schedule(cells: Sequence[Cell], first_round: int = FIRST_ROUND, first_number: int = 0) -> tuple[Trial, ...]:
    """One trial a round, miners in order with a hotkey each; the validator slot's faults lie VALIDATOR_PAUSE apart."""
    miners, validators = [c for c in cells if not c.validator], [c for c in cells if c.validator]
    trials: list[Trial] = []
    index, next_validator, number = first_round, first_round, first_number
    while miners or validators:
        if validators and index >= next_validator:
            trials.append(Trial(validators.pop(0), index, "saboteur-validator"))
            next_validator = index + VALIDATOR_PAUSE
        elif miners:
            trials.append(Trial(miners.pop(0), index, f"saboteur-{number}"))
            number += 1
        index += 1
    return tuple(trials)
