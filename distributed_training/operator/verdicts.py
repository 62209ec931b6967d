"""How everything that verifies something says what it found: a line each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    PROVEN = "proven"
    OPEN = "NOT proven"  # nobody asked for it, or it cannot be read any more
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.verdict.value + ':':<12}{on_one_line(self.text)}"


def on_one_line(text: str) -> str:
    """Words of others can neither begin a line of their own nor command a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
