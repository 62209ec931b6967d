"""How everything that verifies something says what it found: a line each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from distributed_training.errors import on_one_line


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
