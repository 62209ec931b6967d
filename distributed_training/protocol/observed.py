"""What one validator saw of a miner and keeps of it: frozen records that never go on the wire.

`None` means "not measured" and is never folded as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    PASS = "pass"
    SOFT = "soft"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class AuditResult:
    """One train query: replayed prefix against the pushed log (protocol section 7)."""

    verdict: Verdict
    quality: float  # q in [0, 1]; 0 for a hard fail
    depth: int  # steps asked for
    failed_step: int | None
    error: float | None  # the number that decided, None when nothing was comparable
    reason: str  # "ok", "gradient", "norm", "loss", "log missing", "vector"...
    good: float | None = None  # up to here `error` would be fine
    bad: float | None = None  # beyond it, it fails; a cosine ("vector") fails below it
    noise: float = 0.0  # n0: gradient error between the auditor's own two precisions at step 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What one validator saw of one miner in one applied round. `None` = not measured, never zero."""

    uid: int
    hotkey: str
    registered_block: int
    round: int
    credited_tokens: float
    audit: AuditResult | None
    goodput_bytes_per_s: float | None
    duty: float | None  # 0..1; None when the miner did not commit


@dataclass(frozen=True, slots=True)
class ScoreCard:
    """A miner's standing with one validator, keyed by (hotkey, registered_block). See rules/scoring.py."""

    hotkey: str
    registered_block: int
    uid: int
    work: tuple[float, ...]  # credited tokens / cap of the last rounds, oldest first; 0: absent
    steps: float  # S: what has vested of it
    passes: float  # p: decayed sum of audit qualities
    fails: float  # f: decayed sum of 1 - quality
    integrity: float | None  # EMA of duty; None before the first
    goodput: tuple[float, ...]  # last probes, bytes/s, oldest first
    passed_audit: bool
    zero_until_round: int  # fidelity is 0 while round < this
    reason: str  # why the weight is zero, or ""
    note: str  # last audit: verdict, step, error


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The four published numbers of a card and the weight they give."""

    S: float
    G: float
    B: float
    I: float  # noqa: E741  (the protocol's name)
    weight: float
