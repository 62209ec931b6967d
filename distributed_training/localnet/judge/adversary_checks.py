"""Checks of miners that cheat: pure functions from the summary, like those of checks.py."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import Any

from distributed_training.localnet.judge.facts import applied_rounds, miners
from distributed_training.localnet.names import called

ADVERSARY_SHARE = 0.05
REPLAY_REASONS = ("gradient", "norm", "loss")

Summary = Mapping[str, Any]
Outcome = tuple[bool | None, str]


def adversary_unpaid(summary: Summary) -> Outcome:
    incentive = summary["final"]["incentive"]
    honest = [incentive.get(str(uid), 0.0) for uid in miners(summary, honest=True).values()]
    mean = fsum(honest) / len(honest)
    cheats = {uid: incentive.get(str(uid), 0.0) for uid in miners(summary, honest=False).values()}
    ok = mean > 0 and all(share < ADVERSARY_SHARE * mean for share in cheats.values())
    return ok, f"mean honest {mean:.4f}; " + ", ".join(f"{called(summary, [u])} {x:.4f}" for u, x in cheats.items())


def adversary_took_part(summary: Summary) -> Outcome:
    """Its record was on chain, and its chunks are in a counted slice of the first round it had a record in.

    That is not round 0 for everybody: who copies former rounds has nothing before one is over.
    """
    found: list[str] = []
    for uid in miners(summary, honest=False).values():
        name = called(summary, [uid])
        first = next((r for r in applied_rounds(summary) if str(uid) in r["credit"]), None)
        if first is None:
            return False, f"{name} never had a record on chain"
        if first["credit"][str(uid)] <= 0:
            return False, f"{name} is in no counted slice of its first round, {first['index']}"
        found.append(f"{name} is in the counted slices of its first round, {first['index']}")
    return True, "; ".join(found)


def adversary_named(summary: Summary) -> Outcome:
    """Every validator's failed audit says at which step and by how much, or what of the claim is impossible."""
    found: list[str] = []
    wanted = {name for name, node in summary["nodes"].items() if node["role"] == "validator"}
    for uid in miners(summary, honest=False).values():
        failed = [a for a in summary["failed_audits"] if a["uid"] == uid and says_why(a)]
        missing = sorted(wanted - {a["validator"] for a in failed})
        if missing:
            return False, f"{called(summary, [uid])}: no failed audit with its reason by {', '.join(missing)}"
        first = failed[0]
        where = "" if first["failed_step"] is None else f" at step {first['failed_step']}, error {first['error']:.3g}"
        found.append(f"{called(summary, [uid])}: {first['reason']}{where}")
    return True, "; ".join(found)


def says_why(audit: Mapping[str, Any]) -> bool:
    """A replay has to name step and error; a claim that was refused without one, its reason."""
    if audit["reason"] in REPLAY_REASONS:
        return audit["failed_step"] is not None and audit["error"] is not None
    return bool(audit["reason"])
