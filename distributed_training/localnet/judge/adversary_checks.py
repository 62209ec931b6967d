"""Checks of nodes that cheat: pure functions from the summary, like those of checks.py.

What is expected of an attack stands in its file in adversaries/: its class says what it may earn, its evidence where it
has to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import fsum
from typing import Any

from distributed_training.localnet.attacks import AttackFile, known_attacks
from distributed_training.localnet.judge.facts import applied_rounds, miners
from distributed_training.localnet.names import called

NOT_DONE_SHARE = 0.05  # of an honest miner's pay
FAIR_SHARE = 1.05
REPLAY_REASONS = ("gradient", "norm", "loss")

Summary = Mapping[str, Any]
Outcome = tuple[bool | None, str]
_attacks = cache(known_attacks)


def attack_of(summary: Summary, uid: int) -> AttackFile:
    return _attacks()[next(node["adversary"] for node in summary["nodes"].values() if node["uid"] == uid)]


def judged(summary: Summary) -> dict[int, AttackFile]:
    """uid -> attack of the miners that cheat; without one whose own work is honest."""
    found, seen = dict[int, AttackFile](), list[AttackFile]()
    for uid in miners(summary, honest=False).values():
        attack = attack_of(summary, uid)
        if not attack.first_is_honest or attack in seen:
            found[uid] = attack
        seen.append(attack)
    return found


def adversary_unpaid(summary: Summary) -> Outcome:
    """Work that was not done earns nothing, work partly done no more than was done, everything else its fair share."""
    incentive = summary["final"]["incentive"]
    honest = [incentive.get(str(uid), 0.0) for uid in miners(summary, honest=True).values()]
    mean, ok, said = fsum(honest) / len(honest), True, list[str]()
    for uid, attack in judged(summary).items():
        share, most = incentive.get(str(uid), 0.0), most_pay(attack) * mean
        if most_pay(attack) == FAIR_SHARE:  # its work is honest: as much as its tokens
            most *= _tokens(summary, [uid]) / _tokens(summary, list(miners(summary, honest=True).values()))
        ok = ok and mean > 0 and share < most
        said.append(f"{called(summary, [uid])} {share:.4f}, at most {most:.4f}")
    return ok, f"mean honest {mean:.4f}; " + ", ".join(said)


def _tokens(summary: Summary, uids: Sequence[int]) -> float:
    """Trained by one of them, in the mean, over all applied rounds; never 0."""
    names = [name for name, node in summary["nodes"].items() if node["uid"] in uids]
    work = [r["nodes"][name] for r in applied_rounds(summary) for name in names]
    return max(1.0, fsum((w or {}).get("tokens") or 0 for w in work) / len(uids))


def most_pay(attack: AttackFile) -> float:
    """Of an honest miner's."""
    if attack.evidence in ("audit", "credit") and attack.kind in ("a", "b"):
        return max(NOT_DONE_SHARE, attack.honest_share)
    return FAIR_SHARE


def adversary_took_part(summary: Summary) -> Outcome:
    """Its record was on chain, and what only a replay tells was in a counted slice of the first round it had one in.

    That is not round 0 for everybody: who copies former rounds has nothing before one is over.
    """
    found: list[str] = []
    for uid, attack in judged(summary).items():
        name = called(summary, [uid])
        first = next((r for r in applied_rounds(summary) if str(uid) in r["credit"]), None)
        if first is None:
            return False, f"{name} never had a record on chain"
        if attack.evidence == "audit" and first["credit"][str(uid)] <= 0:
            return False, f"{name} is in no counted slice of its first round, {first['index']}"
        found.append(f"{name} took part from round {first['index']} on")
    return True, "; ".join(found)


def adversary_named(summary: Summary) -> Outcome:
    """Each is told from an honest miner where its attack has to show, with the numbers."""
    results = [evidence(summary, uid, attack) for uid, attack in judged(summary).items()]
    wrong = [said for ok, said in results if not ok]
    return not wrong, "; ".join(wrong or [said for _, said in results])


def evidence(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    """Does it show where it has to, and with which numbers?"""
    return _EVIDENCE[attack.evidence](summary, uid, attack)


def _by_audit(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    """Failed audits that say at which step and by how much, or what of the claim is impossible: every honest
    validator's, or where the first steps are honest, one that looked behind them."""
    failed = [a for a in summary["failed_audits"] if a["uid"] == uid and says_why(a)]
    wanted = {n for n, node in summary["nodes"].items() if node["role"] == "validator" and node["adversary"] is None}
    missing = sorted(wanted - {a["validator"] for a in failed})
    if not failed or (missing and not attack.honest_share):
        return False, f"{called(summary, [uid])}: no failed audit with its reason by {', '.join(missing)}"
    steps = next(node["steps_per_round"] for node in summary["nodes"].values() if node["uid"] == uid)
    honest = max(1, int(attack.honest_share * steps)) if attack.honest_share else 0
    early = [a for a in failed if a["failed_step"] is not None and a["failed_step"] < honest]
    if early:
        return False, f"{called(summary, [uid])}: failed at step {early[0]['failed_step']}, honest up to {honest}"
    first = failed[0]
    where = "" if first["failed_step"] is None else f" at step {first['failed_step']}, error {first['error']:.3g}"
    behind = f", behind its {honest} honest steps" if honest else ""
    return True, f"{called(summary, [uid])}: {first['reason']}{where}{behind} (round {first['round']})"


def says_why(audit: Mapping[str, Any]) -> bool:
    """A replay has to name step and error; a claim that was refused without one, its reason."""
    if audit["reason"] in REPLAY_REASONS:
        return audit["failed_step"] is not None and audit["error"] is not None
    return bool(audit["reason"])


def _by_slices(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    """What its own slices lack, against an honest reducer's, and what was left of its duty."""
    lacking = _lacking(summary, uid) if attack.evidence == "reducer" else _uncounted(summary, uid)
    honest = list(miners(summary, honest=True).values())
    duty, theirs = _audited(summary, [uid], "duty"), _audited(summary, honest, "duty")
    if lacking is None or duty is None or theirs is None:
        return False, f"{called(summary, [uid])} reduced nothing, or nobody said of its duty"
    what = (
        "of the expected senders are not in its slices"
        if attack.evidence == "reducer"
        else "of its slices did not count"
    )
    said = f"{called(summary, [uid])}: {100 * lacking:.0f} % {what}; duty {duty:.2f}, honest {theirs:.2f}"
    return lacking > 0 and duty < theirs, said


def _lacking(summary: Summary, uid: int) -> float | None:
    """The share of the expected senders that its own counted slices lack, over all rounds."""
    shares: list[float] = []
    for r in applied_rounds(summary):
        for j in (j for j, reducer in r["reducers"].items() if reducer == uid and int(j) in r["counted"]):
            if int(j) not in r["backed_up"] and r["included"]:
                shares.append(len(set(r["missing"].get(j, ())) & set(r["included"])) / len(r["included"]))
    return fsum(shares) / len(shares) if shares else None


def _uncounted(summary: Summary, uid: int) -> float | None:
    lost: list[bool] = []
    for r in applied_rounds(summary):
        mine = [int(j) for j, reducer in r["reducers"].items() if reducer == uid]
        lost += [j not in r["counted"] or j in r["backed_up"] for j in mine]
    return sum(lost) / len(lost) if lost else None


def _by_probes(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    share = _audited(summary, [uid], "unanswered") or 0.0
    honest = _audited(summary, list(miners(summary, honest=True).values()), "unanswered") or 0.0
    said = f"{called(summary, [uid])} left {100 * share:.0f} % of the probes without an answer"
    return share > honest, f"{said}, honest miners {100 * honest:.0f} %"


def _by_credit(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    def credit(of: int) -> float:
        shares = [r["credit"].get(str(of), 0.0) for r in applied_rounds(summary)]
        return fsum(shares) / max(1, len(shares))

    least = min(credit(honest) for honest in miners(summary, honest=True).values())
    return credit(uid) < least, f"{called(summary, [uid])}: credit {credit(uid):.2f}, honest at least {least:.2f}"


def _by_nothing(summary: Summary, uid: int, attack: AttackFile) -> Outcome:
    return True, f"{called(summary, [uid])} is to change nothing for others: see the other checks"


def _audited(summary: Summary, uids: Sequence[int], what: str) -> float | None:
    found = [summary["audited"][str(uid)][what] for uid in uids if str(uid) in summary["audited"]]
    known = [value for value in found if value is not None]
    return fsum(known) / len(known) if known else None


_EVIDENCE = {
    "audit": _by_audit,
    "reducer": _by_slices,
    "slice": _by_slices,
    "probe": _by_probes,
    "credit": _by_credit,
    "none": _by_nothing,
}
