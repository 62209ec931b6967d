"""Checks of what happens when nodes die: pure functions from the summary, like those of checks.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed_training.localnet.run.kills import RECOVERY_ROUNDS

Summary = Mapping[str, Any]
Outcome = tuple[bool, str]


def absent(summary: Summary, index: int) -> set[str]:
    """Nodes that were killed in this round or not back yet: what they did in it is not measured.

    Never for longer than a node has to come back (RECOVERY_ROUNDS): after that it is to be asked for again. Everybody
    in a round in which the whole run was stopped.
    """
    if index in interrupted(summary):
        return set(summary["nodes"])
    return {
        fault["name"]
        for fault in summary["faults"]
        if fault["round"] <= index < min(_back(fault), fault["round"] + RECOVERY_ROUNDS)
    }


def interrupted(summary: Summary) -> list[int]:
    """Rounds in which the run was stopped, and that some had to begin again with what was left of them."""
    return sorted((summary["watch"] or {}).get("interrupted", []))


def but_for(summary: Summary) -> str:
    """Which rounds are not judged, in words; empty when all are."""
    rounds = interrupted(summary)
    if not rounds:
        return ""
    return f", but for {', '.join(f'round {index}' for index in rounds)}, in which the run was stopped and went on"


def _back(fault: Mapping[str, Any]) -> int:
    """At least the round of the kill counts as disturbed."""
    rejoined = fault["rejoined_round"]
    return fault["round"] + RECOVERY_ROUNDS if rejoined is None else max(rejoined, fault["round"] + 1)


def ever_killed(summary: Summary) -> set[str]:
    return {fault["name"] for fault in summary["faults"]}


def kills_done(summary: Summary) -> Outcome:
    wanted, faults = len(summary["params"]["kill"]), summary["faults"]
    unmeasured = [f["name"] for f in faults if None in (f["block"], f["pid"])]
    shown = ", ".join(f"{f['name']} at {f['phase']} {f['round']}" for f in faults) or "none"
    return len(faults) == wanted and not unmeasured, f"{len(faults)} of {wanted}: {shown}"


def no_survivors(summary: Summary) -> Outcome:
    """No process outlives its node, whatever kills it."""
    unknown = [f["name"] for f in summary["faults"] if f["survivors"] is None]
    left = [f"{f['name']}: {f['survivors']}" for f in summary["faults"] if f["survivors"]]
    if unknown or left:
        return False, "; ".join([*left, *(f"{name}: nobody looked" for name in unknown)])
    helpers = sum(len(f["helpers"]) for f in summary["faults"])
    return bool(summary["faults"]), f"{helpers} helper processes of {len(summary['faults'])} killed nodes ended too"


def rejoined(summary: Summary) -> Outcome:
    late = [
        f"{f['name']} killed in round {f['round']}, back in {f['rejoined_round']}"
        for f in summary["faults"]
        if f["rejoined_round"] is None or f["rejoined_round"] > f["round"] + RECOVERY_ROUNDS
    ]
    if late:
        return False, "; ".join(late)
    shown = ", ".join(f"{f['name']} {f['round']} to {f['rejoined_round']}" for f in summary["faults"])
    return bool(summary["faults"]), f"killed in round, back in round: {shown}"


def nobody_hung(summary: Summary) -> Outcome:
    """By the outside watcher: every live node had settled every round by s+L and a moment.

    Dead is allowed for a killed node, and for all in a round in which the run was stopped. What the watcher could
    not see, because it was stopped itself, is nobody's fault.
    """
    watch = summary["watch"]
    if watch is None:
        return False, "nobody watched"
    verdicts = {row["index"]: row for row in watch["rounds"]}
    settled = 0
    for r in summary["rounds"]:
        row = verdicts.get(r["index"])
        if row is None:
            return False, f"round {r['index']} was not watched"
        fine = set(row["settled"]) | set(row["unseen"]) | (set(row["dead"]) & absent(summary, r["index"]))
        if wrong := sorted(set(summary["nodes"]) - fine):
            how = ", ".join(f"{n} {_verdict(row, n)}" for n in wrong)
            return False, f"round {r['index']}: {how}"
        settled += len(row["settled"])
    pauses = [f"the watcher never slept longer than {watch['longest_pause_s']} s", *stood_still(summary)]
    within = f"within {watch['grace_s']:.0f} s of their end{but_for(summary)}"
    return bool(settled), f"{settled} node-rounds settled {within}; {'; '.join(pauses)}"


def stood_still(summary: Summary) -> list[str]:
    """When the whole machine did, in words."""
    pauses = (summary["watch"] or {}).get("stood_still", [])
    return [
        f"the machine stood still for {pause['seconds']:.0f} s "
        + (f"in round {pause['round']}" if pause["round"] >= 0 else "before round 0")
        for pause in pauses
    ]


def _verdict(row: Mapping[str, Any], name: str) -> str:
    return next((v for v in ("late", "dead") if name in row[v]), "not seen to the end")
