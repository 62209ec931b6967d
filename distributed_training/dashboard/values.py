"""Values of foreign JSON as what they should be, or None; and what is kept of them. Strings are cut."""

from __future__ import annotations

from bisect import insort_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_AUDITS, MAX_UIDS = 60, 4096
MAX_TEXT, MAX_NAME = 400, 64
TERMS = ("S", "G", "B", "I", "weight")

Event = Mapping[str, Any]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else None  # so for a whole number that no float can hold


def text(value: Any, most: int = MAX_TEXT) -> str | None:
    return None if value is None else str(value)[:most]


def earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def uid_of(value: Any) -> int | None:
    """A uid as a number, or as the text that a JSON key is; None for anything else."""
    try:
        uid = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else -1
    except ValueError:
        return None
    return uid if 0 <= uid < MAX_UIDS else None


def by_uid(value: Any) -> dict[int, Any]:
    if not isinstance(value, Mapping):
        return {}
    return {uid: item for key, item in value.items() if (uid := uid_of(key)) is not None}


def shares(value: Any) -> dict[int, float]:
    return {uid: share for uid, item in by_uid(value).items() if (share := number(item)) is not None}


def uids(value: Any) -> list[int]:
    found = value if isinstance(value, list) else []
    return [uid for item in found[:MAX_UIDS] if (uid := uid_of(item)) is not None]


@dataclass(slots=True)
class Node:
    """The newest that one node said of itself."""

    name: str
    uid: int | None = None
    role: str = "unknown"
    hotkey: str | None = None
    adversary: str | None = None
    round: int | None = None
    phase: str | None = None
    step: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    trouble: str | None = None
    last_seen: float | None = None
    ended: bool = False
    killed: bool = False


@dataclass(slots=True)
class Row:
    """One round in the curves. None where nobody said."""

    index: int
    applied: bool | None = None
    reason: str | None = None
    heldout_loss: float | None = None
    trained: float = 0.0  # tokens of which a loss is known,
    loss_sum: float = 0.0  # and the sum of their losses
    tokens: float | None = None
    candidates: int | None = None
    included: int | None = None
    backed_up: int | None = None
    lost: int | None = None
    first: float | None = None  # Unix times of its first event, and of the first node that settled it
    last: float | None = None
    state_root: str | None = None
    settled: int = 0
    identical: bool = True


@dataclass(slots=True)
class Part:
    """What one uid did in one round, and how it was scored: `terms` by validator."""

    included: bool | None = None
    credit: float | None = None
    steps: float | None = None
    tokens: float | None = None
    terms: dict[int, dict[str, float | None]] = field(default_factory=dict)

    def mean(self, term: str) -> float | None:
        known = [value for terms in self.terms.values() if (value := terms.get(term)) is not None]
        return sum(known) / len(known) if known else None


@dataclass(slots=True)
class Person:
    """What is known of one uid: its newest rounds and audits."""

    rounds: dict[int, Part] = field(default_factory=dict)
    audits: list[dict[str, Any]] = field(default_factory=list)  # newest first


@dataclass(slots=True)
class Judge:
    """The newest of one validator."""

    round: int = -1
    cards: dict[int, dict[str, Any]] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)


def audit_row(validator: int | None, event: Event) -> dict[str, Any]:
    """One audit as the page shows it: `error` is fine up to `good` and fails beyond `bad` (a cosine, below it)."""
    numbers = ("error", "good", "bad", "depth", "failed_step", "quality", "goodput_bytes_per_s", "duty")
    row: dict[str, Any] = {"validator": validator, "uid": uid_of(event.get("target")), "round": event.get("round")}
    row |= {key: text(event.get(key)) for key in ("verdict", "reason")}
    return row | {key: number(event.get(key)) for key in numbers}


def fault_row(node: str, uid: int | None, event: Event) -> dict[str, Any]:
    said = {"what": text(event.get("what"), MAX_NAME), "detail": text(event.get("detail"))}
    return {"time": number(event.get("time")), "node": node, "uid": uid, "round": event.get("round")} | said


def keep(rows: list[dict[str, Any]], row: dict[str, Any], key: str, most: int) -> None:
    """Among the `most` newest by the number `key`, newest first: files of nodes are read one after the other."""
    insort_left(rows, row, key=lambda one: -(one[key] or 0.0))
    del rows[most:]


def cards_of(event: Event) -> dict[int, dict[str, Any]]:
    """uid -> card, of a `scores` event."""
    found = {uid: card for uid, card in by_uid(event.get("cards")).items() if isinstance(card, Mapping)}
    return {
        uid: {term: number(card.get(term)) for term in TERMS} | {k: text(card.get(k)) for k in ("reason", "note")}
        for uid, card in found.items()
    }
