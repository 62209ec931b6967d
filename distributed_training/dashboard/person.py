"""uid/U.json: one uid, and in plain sentences why it has its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed_training.dashboard.page import Seen
from distributed_training.dashboard.values import TERMS, Person
from distributed_training.protocol.manifest import RunManifest

SAID = {"pass": "passed", "soft": "passed in part", "fail": "FAILED"}


def uid_document(seen: Seen, uid: int, incentives: Mapping[int, Mapping[int, float]]) -> dict[str, Any] | None:
    """incentives: by round. None: nobody of this uid."""
    fold, node = seen.fold, seen.node(uid)
    person, hotkey = fold.people.get(uid), None if seen.chain is None else seen.chain.hotkeys.get(uid)
    if person is None and node is None and hotkey is None:
        return None
    person = person or Person()
    board = next((row for row in seen.board if row["uid"] == uid), None)
    return {
        "uid": uid,
        "name": seen.name(uid),
        "role": seen.role(uid),
        "hotkey": hotkey if node is None or node.hotkey is None else node.hotkey,
        "why": why(seen, uid, board, person.audits),
        "rounds": _rounds(person, uid, incentives),
        "observations": list(person.audits),
        "faults": [fault for fault in fold.faults if fault["uid"] == uid],
        "safe": seen.safe(uid),
    }


def _rounds(person: Person, uid: int, incentives: Mapping[int, Mapping[int, float]]) -> list[dict[str, Any]]:
    return [
        {"index": index, "included": part.included, "credit": part.credit, "steps": part.steps, "tokens": part.tokens}
        | {term: part.mean(term) for term in TERMS}
        | {"incentive": incentives.get(index, {}).get(uid)}
        for index, part in sorted(person.rounds.items())
    ]


def why(seen: Seen, uid: int, board: Mapping[str, Any] | None, observed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Its standing, each term with what it was made of, its audits, what the chain pays."""
    if board is None:
        role = seen.role(uid) or "node"
        return [f"uid {uid} is {'an' if role == 'owner' else 'a'} {role}: only miners are given weight."]
    manifest = seen.about.manifest
    said = [_weight(board), *_terms(board, manifest)]
    judges = [judge.cards[uid] for judge in seen.fold.judges.values() if uid in judge.cards]
    said += [f"A validator says: {text}." for text in dict.fromkeys(c["reason"] for c in judges if c["reason"])]
    said += _audits(observed)
    if board["included_share"] is not None:
        said.append(f"Its work was included in {_percent(board['included_share'])} of the newest rounds known here.")
    if board["incentive"] is not None:
        said.append(f"The chain gave it {_percent(board['incentive'])} of the incentive in the last epoch.")
    return said


def _weight(board: Mapping[str, Any]) -> str:
    if board["weight"] is None:
        return "No validator's scores of it are known here."
    if board["weight"] == 0.0:
        return "It has no weight."
    return f"It has {_percent(board['weight'])} of all weight, rank {board['rank']}."


def _terms(board: Mapping[str, Any], manifest: RunManifest | None) -> list[str]:
    """Weight is in proportion to I x G x S x (1 - b + b x B)."""
    said: list[str] = []
    if manifest is None or any(board[term] is None for term in TERMS):
        return said
    s, cap = manifest.scoring, manifest.average.token_cap
    raw = board["I"] * board["G"] * board["S"] * (1 - s.bandwidth_share + s.bandwidth_share * board["B"])
    said.append(
        f"Its raw score is I x G x S x ({1 - s.bandwidth_share:g} + {s.bandwidth_share:g} x B) = {raw:.3g}; weight is "
        "its share of everybody's raw score."
    )
    said.append(
        f"S = {board['S']:.4f}: about {board['S'] * cap:,.0f} credited tokens a round on average, of at most {cap:,} "
        f"that count; it is paid in full once it has done as much in {s.vesting_rounds} rounds."
    )
    failed = f" An audit that fails makes it 0 for {s.penalty_rounds} rounds." if board["G"] == 0.0 else ""
    said.append(f"G = {board['G']:.3f}: how far audits of its gradients bear it out; 1 is the most.{failed}")
    floor = f" It is below {s.integrity_floor:g}, so it counts as 0." if board["I"] == 0.0 else ""
    said.append(f"I = {board['I']:.3f}: how well it does its duty as sender and as reducer; 1 is all of it.{floor}")
    said.append(f"B = {board['B']:.3f}: how fast it serves what validators ask for; 1 is fast enough.")
    return said


def _audits(observed: Sequence[Mapping[str, Any]]) -> list[str]:
    judged = [row for row in observed if row["verdict"] in SAID]
    if not judged:
        return ["No audit of it is known here."]
    passed = sum(row["verdict"] == "pass" for row in judged)
    said = [f"It passed {passed} of the last {len(judged)} audits."]
    worst = next((row for row in judged if row["verdict"] != "pass"), None)
    for label, row in (("The last one", judged[0]), ("The last one that did not pass", worst)):
        if row is not None and (label == "The last one" or row is not judged[0]):
            said.append(f"{label}, by uid {row['validator']} in round {row['round']}, {_audit(row)}.")
    return said


def _audit(row: Mapping[str, Any]) -> str:
    steps = "" if row["depth"] is None else f" over {row['depth']:g} steps"
    text = f"{SAID[row['verdict']]}{steps}"
    if row["verdict"] != "pass":
        text += f": {row['reason']}" + ("" if row["failed_step"] is None else f" at step {row['failed_step']:g}")
    if row["error"] is None or row["bad"] is None:
        return text
    if row["reason"] == "vector":
        return f"{text}; cosine {row['error']:.3g}, below {row['bad']:.3g} fails"
    good = "" if row["good"] is None else f" is good up to {row['good']:.3g} and"
    return f"{text}; its error {row['error']:.3g}{good} fails above {row['bad']:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
