"""What has to hold at the end of a demo: pure functions from the summary to (held, the numbers in words).

Each takes the summary without its `checks` and answers for itself; a number that was not measured fails a check. None
for held: the run was too short to tell, which is no failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum
from typing import Any

from distributed_training.localnet.judge import adversary_checks, fault_checks, hub_checks, loss_checks
from distributed_training.localnet.judge.facts import applied_rounds, miners, nobody_judged
from distributed_training.localnet.judge.fault_checks import absent, but_for, ever_killed, interrupted
from distributed_training.localnet.layout import NEWCOMER
from distributed_training.localnet.names import called, many

INCENTIVE_SUM_TOLERANCE = 1e-3
PROPORTION_TOLERANCE = 0.15
WITH_CHEATS_TOLERANCE = 0.10
MIN_REDUCERS = 3
ROUNDS_UNTIL_INCLUDED = 3
LOST_TO_KILLS = 2  # rounds that may be missing when kills were asked for

Summary = Mapping[str, Any]
Outcome = tuple[bool | None, str]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool | None
    detail: str


def run_checks(summary: Summary) -> list[Check]:
    """Every check that applies to this run, in the order a reader wants them."""
    wanted = dict(ALWAYS)
    if any(node["adversary"] for node in summary["nodes"].values()):
        wanted |= WITH_ADVERSARY
    else:
        wanted |= HONEST_ONLY
    if summary["params"].get("kill"):
        wanted |= WITH_KILLS
    if summary["hub"] is not None:
        wanted |= WITH_HUB
    if summary["params"].get("newcomer"):
        wanted["newcomer_joined"] = newcomer_joined
    if any(node["role"] == "miner" and not node["by_demo"] for node in summary["joined"].values()):
        wanted["joined_included"] = joined_included
    if summary["params"]["steps"] is not None:
        wanted["exact_steps"] = exact_steps
    unjudged = nobody_judged(summary)
    outcomes = {
        name: (None, unjudged) if unjudged and name in OF_PAY else check(summary) for name, check in wanted.items()
    }
    return [Check(name, *outcome) for name, outcome in outcomes.items()]


def rounds_applied(summary: Summary) -> Outcome:
    found, wanted = len(applied_rounds(summary)), summary["rounds_wanted"]
    needed = wanted - LOST_TO_KILLS if summary["params"].get("kill") else wanted
    reasons = sorted({str(r["reason"]) for r in summary["rounds"] if not r["applied"]})
    return found >= needed, f"{found} of {wanted}" + (f"; others: {'; '.join(reasons)}" if reasons else "")


def same_state_root(summary: Summary) -> Outcome:
    """All nodes hold the same root after every round; a node that has none breaks it, unless it was killed."""
    for r in summary["rounds"]:
        missing = {name for name, root in r["state_roots"].items() if root is None} - absent(summary, r["index"])
        if missing:
            return False, f"round {r['index']}: no root from {', '.join(sorted(missing))}"
        roots = {root for root in r["state_roots"].values() if root is not None}
        if len(roots) != 1:
            return False, f"round {r['index']}: {len(roots)} different roots"
    nodes = len(summary["nodes"]) + len(summary["joined"])
    return bool(summary["rounds"]), f"{nodes} nodes, {many(len(summary['rounds']), 'round')}"


def miners_included(summary: Summary) -> Outcome:
    names, excused = miners(summary, honest=True), 0
    for r in applied_rounds(summary):
        dead = absent(summary, r["index"])
        excused += 0 if r["index"] in interrupted(summary) else len(dead & set(names))
        wanted = {uid for name, uid in names.items() if name not in dead}
        if not wanted <= set(r["included"]):
            return False, f"round {r['index']} left out {called(summary, sorted(wanted - set(r['included'])))}"
    shown = f", but for {excused} rounds of one that had been killed" if excused else ""
    return bool(applied_rounds(summary)), f"all {len(names)} in every applied round{shown}{but_for(summary)}"


def slices_counted(summary: Summary) -> Outcome:
    """A slice whose reducer was killed may be missing."""
    numbers = [(len(r["counted"]), r["num_slices"], len(dead_miners(summary, r))) for r in applied_rounds(summary)]
    ok = bool(numbers) and all(counted >= min(MIN_REDUCERS, total - dead) for counted, total, dead in numbers)
    return ok, "counted of all by round: " + ", ".join(f"{c}/{n}" for c, n, _ in numbers)


def bytes_sent(summary: Summary) -> Outcome:
    """At least (n-1)/n of the wire bytes per honest miner and applied round, n slices; a dead reducer gets nothing."""
    shares: list[float] = []
    for r in applied_rounds(summary):
        dead = dead_miners(summary, r)
        receivers = max(0, r["num_slices"] - 1 - len(dead))
        needed = summary["wire_bytes"] * receivers / max(1, r["num_slices"])
        for name in sorted(set(miners(summary, honest=True)) - dead):
            node = r["nodes"][name]
            if node is None or node["bytes_sent"] is None:
                return False, f"round {r['index']}: not measured for {name}"
            shares.append(node["bytes_sent"] / needed if needed else 1.0)
    low = min(shares, default=0.0)
    return low >= 1.0, f"least sent is {low:.2f} x (n-1)/n of {summary['wire_bytes']} bytes"


def dead_miners(summary: Summary, r: Mapping[str, Any]) -> set[str]:
    """Those that were killed, and those that a person started and that did not settle the round."""
    gone = {n for n, node in summary["joined"].items() if node["role"] == "miner" and r["index"] not in node["rounds"]}
    return gone | {name for name in absent(summary, r["index"]) if summary["nodes"][name]["role"] == "miner"}


def weights_on_chain(summary: Summary) -> Outcome:
    wanted = {node["uid"] for node in summary["nodes"].values() if node["role"] == "validator"}
    found = {int(uid) for uid, row in summary["final"]["weights"].items() if any(row.values())}
    return wanted <= found, f"rows of {called(summary, sorted(found))}" + (
        f"; missing: {called(summary, sorted(wanted - found))}" if wanted - found else ""
    )


def incentive_sum(summary: Summary) -> Outcome:
    total = fsum(summary["final"]["incentive"].values())
    return abs(total - 1.0) <= INCENTIVE_SUM_TOLERANCE, f"{total:.5f} in block {summary['final']['block']}"


def honest_proportional(summary: Summary) -> Outcome:
    """The same beside nodes that cheat, whatever they do to others."""
    return incentive_proportional(summary, WITH_CHEATS_TOLERANCE)


def incentive_proportional(summary: Summary, tolerance: float = PROPORTION_TOLERANCE) -> Outcome:
    """Incentive against credited tokens, both as shares, over the rounds from the first common audit to the last
    one scored, among the miners that were never killed."""
    first, last = summary["first_common_audit"], summary["last_scored_round"]
    if first is None or last is None:
        return False, "no round in which all validators audited all miners"
    killed = ever_killed(summary)
    uids = [str(uid) for name, uid in miners(summary, honest=True).items() if name not in killed]
    rounds = [r for r in applied_rounds(summary) if first <= r["index"] <= last]
    tokens = {uid: fsum(r["credited_tokens"].get(uid) or 0.0 for r in rounds) for uid in uids}
    total, paid = fsum(tokens.values()), {uid: summary["final"]["incentive"].get(uid, 0.0) for uid in uids}
    if total <= 0 or fsum(paid.values()) <= 0:
        return False, "nothing credited or nothing paid"
    ratios = {u: paid[u] / fsum(paid.values()) * total / tokens[u] if tokens[u] else 0.0 for u in uids}
    ok = all(abs(ratio - 1.0) <= tolerance for ratio in ratios.values())
    return ok, "paid share / token share: " + ", ".join(f"{called(summary, [u])} {x:.3f}" for u, x in ratios.items())


def offline_check(summary: Summary) -> Outcome:
    """It found nothing wrong, and every root that a live node told is the one it computed."""
    offline = summary["offline"]
    if offline is None:
        return False, "did not run to its end"
    if not offline["ok"]:
        return False, "; ".join(offline["problems"][:3])
    computed = {r["index"]: r["root"] for r in offline["rounds"]}
    for r in summary["rounds"]:
        told = {name: root for name, root in r["state_roots"].items() if root is not None}
        other = sorted(name for name, root in told.items() if root != computed.get(r["index"]))
        if other:
            return False, f"round {r['index']}: {', '.join(other)} told another root than the one computed"
    slices = sum(r["recomputed"] for r in offline["rounds"])
    return True, f"{len(offline['rounds'])} rounds, {slices} slices bit for bit, {len(offline['nodes'])} nodes' states"


def ended_cleanly(summary: Summary) -> Outcome:
    codes = {n: node["exit_code"] for n, node in summary["nodes"].items() if node["exit_code"] != 0}
    return not codes, ", ".join(f"{n} exit code {c}" for n, c in codes.items()) or "all nodes ended by themselves"


def checkpoint_published(summary: Summary) -> Outcome:
    return bool(summary["checkpoints"]), "of the states before rounds " + (
        ", ".join(str(c["round"]) for c in summary["checkpoints"]) or "none"
    )


def exact_steps(summary: Summary) -> Outcome:
    for name in miners(summary, honest=True):
        wanted = summary["nodes"][name]["steps_per_round"]
        for r in (r for r in summary["rounds"] if name not in absent(summary, r["index"])):
            steps = None if r["nodes"][name] is None else r["nodes"][name]["steps"]
            if steps != wanted:
                return False, f"round {r['index']}: {name} did {steps} steps, {wanted} wanted"
    return True, f"every miner in every round{but_for(summary)}"


def newcomer_joined(summary: Summary) -> Outcome:
    """A miner that was told the subnet and no more: included within a few rounds of its start, paid at the end."""
    newcomer = summary["joined"].get(NEWCOMER)
    if newcomer is None:
        return False, "it was never ready"
    start, included = newcomer["start_round"], newcomer["included"]
    paid = summary["final"]["incentive"].get(str(newcomer["uid"]), 0.0)
    said = f"from {newcomer['source']}, round {start}; included in rounds {included}; incentive {paid:.4f}"
    soon = bool(included) and included[0] <= start + ROUNDS_UNTIL_INCLUDED
    return soon and paid > 0 and newcomer["exit_code"] == 0, f"{said}; exit code {newcomer['exit_code']}"


def joined_included(summary: Summary) -> Outcome:
    """Miners that a person started: each is in the average within a few rounds, if it stays for as many."""
    found: list[str] = []
    held: list[bool | None] = []
    for node in (n for n in summary["joined"].values() if n["role"] == "miner" and not n["by_demo"]):
        start, included, name = node["start_round"], node["included"], called(summary, [node["uid"]])
        soon = bool(included) and included[0] <= start + ROUNDS_UNTIL_INCLUDED
        held.append(True if soon else False if len(node["rounds"]) > ROUNDS_UNTIL_INCLUDED else None)
        paid = 100 * summary["final"]["incentive"].get(str(node["uid"]), 0.0)
        how = f"included from round {included[0]} on" if included else "not included"
        found.append(
            f"{name} from round {start} on, {many(len(node['rounds']), 'round')}: {how}, {paid:.1f} % of the pay"
        )
    return (False if False in held else None if None in held else True), "; ".join(found)


Function = Callable[[Summary], Outcome]
OF_PAY = (
    "weights_on_chain", "incentive_sum", "incentive_proportional", "honest_proportional", "adversary_unpaid",
    "adversary_named",
)  # fmt: skip
ALWAYS: dict[str, Function] = {
    "rounds_applied": rounds_applied,
    "same_state_root": same_state_root,
    "offline_check": offline_check,
    "miners_included": miners_included,
    "nobody_hung": fault_checks.nobody_hung,
    "slices_counted": slices_counted,
    "bytes_sent": bytes_sent,
    "loss_fell": loss_checks.loss_fell,
    "weights_on_chain": weights_on_chain,
    "incentive_sum": incentive_sum,
    "checkpoint_published": checkpoint_published,
    "ended_cleanly": ended_cleanly,
}
HONEST_ONLY: dict[str, Function] = {
    "loss_below_solo_mean": loss_checks.loss_below_solo_mean,
    "incentive_proportional": incentive_proportional,
}
WITH_ADVERSARY: dict[str, Function] = {
    "honest_proportional": honest_proportional,
    "adversary_took_part": adversary_checks.adversary_took_part,
    "adversary_named": adversary_checks.adversary_named,
    "adversary_unpaid": adversary_checks.adversary_unpaid,
}
WITH_HUB: dict[str, Function] = {
    "newcomer_from_hub": hub_checks.newcomer_from_hub,
    "published_model": hub_checks.published_model,
    "published_verified": hub_checks.published_verified,
    "miner_copies": hub_checks.miner_copies,
    "pages_over_hub": hub_checks.pages_over_hub,
}
WITH_KILLS: dict[str, Function] = {
    "kills_done": fault_checks.kills_done,
    "rejoined_within_2_rounds": fault_checks.rejoined,
    "no_survivors": fault_checks.no_survivors,
}
