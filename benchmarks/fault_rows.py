"""What a fault did, from what is left after the run: events, logs, chain and kept bytes. Nobody's word counts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

from benchmarks.fault_run import Course
from benchmarks.fault_subnet import FaultSubnet
from distributed_training.localnet.judge.offline import RoundCheck, RoundReads, check_run, read_rounds
from distributed_training.localnet.judge.watcher import SETTLED
from distributed_training.protocol.types import Role

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    subnet: FaultSubnet
    events: Mapping[str, Sequence[Event]]  # node -> its events, oldest first
    watched: Mapping[int, Mapping[str, Any]]  # round -> the outside observer's verdicts
    checks: Mapping[int, RoundCheck]  # round -> recomputed offline
    reads: Mapping[int, RoundReads]  # round -> the chain

    def settled(self, name: str, index: int) -> Event | None:
        return next((e for e in self.events.get(name, ()) if e["event"] == "round" and e["round"] == index), None)

    @property
    def honest(self) -> list[str]:
        return [spec.name for spec in self.subnet.honest]


def gather(subnet: FaultSubnet, watched: Mapping[int, Mapping[str, Any]]) -> Evidence:
    """Reads everything; call when no process runs any more."""
    checks, _ = check_run(subnet.paths)
    reads = read_rounds(subnet.paths, subnet.manifest, None)
    folders = [p for p in (subnet.paths.root / "nodes").iterdir() if (p / "events.jsonl").exists()]
    events = {p.name: _lines((p / "events.jsonl").read_text()) for p in folders}
    return Evidence(subnet, events, watched, {c.index: c for c in checks}, {r.round.index: r for r in reads})


def _lines(text: str) -> list[Event]:
    found: list[Event] = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # a killed node's last line
            continue
    return found


def row(course: Course, evidence: Evidence) -> dict[str, Any]:
    """One line of the table; numbers that could not be measured are None."""
    index, event = course.trial.round, course.injected
    seen = evidence.watched.get(index)
    settled = [evidence.settled(name, index) for name in evidence.honest]
    first = next((s for s in settled if s is not None), None)
    own = evidence.settled(course.trial.name, index)
    return {
        "fault": course.trial.cell.fault,
        "point": course.trial.cell.point,
        "round": index,
        "round_s": _round_s(evidence, seen),
        "applied": None if first is None else first["applied"],
        "bytes_in_flight": None if event is None else event["bytes_in_flight"],
        "hung": seen is None or any(seen["verdicts"].get(name) != SETTLED for name in evidence.honest),
        "identical": identical([*settled, *([own] if own else [])], evidence.checks.get(index)),
        "credit_lost": credit_lost(evidence, index, course.trial.name),
        "slice": slice_of(first, evidence.subnet.saboteurs[course.trial.name].uid),
        "effect": effects(course, evidence),
    }


def problem(line: Mapping[str, Any]) -> str | None:
    """Why this row fails the benchmark; None when it holds."""
    what = f"{line['fault']}@{line['point']} in round {line['round']}"
    if line["bytes_in_flight"] is None:
        return f"{what}: the fault did not come about"
    if line["hung"]:
        return f"{what}: a live node had not settled the round in time"
    if not line["identical"]:
        return f"{what}: live nodes hold different states, or not the one recomputed offline"
    if not line["effect"]:
        return f"{what}: nobody noticed anything"
    return None


def _round_s(evidence: Evidence, seen: Mapping[str, Any] | None) -> float | None:
    """From the round's start until the last honest node had settled it, by the observer's clock."""
    after = [None if seen is None else seen["after_end_s"].get(name) for name in evidence.honest]
    known = [value for value in after if value is not None]
    return round(evidence.subnet.round_s + max(known), 2) if len(known) == len(after) else None


def identical(settled: Sequence[Event | None], check: RoundCheck | None) -> bool:
    """Every live node's root after the round is the one recomputed from kept bytes and the chain."""
    roots = {None if event is None else event["state_root"] for event in settled}
    return check is not None and roots == {check.root}


def credit_lost(evidence: Evidence, index: int, saboteur: str) -> float | None:
    """Share of the tokens trained in the round that got no credit: the honest miners' and this saboteur's.

    Other saboteurs are left out: they join, or were broken a round ago.
    """
    event = next((e for n in evidence.honest if (e := evidence.settled(n, index))), None)
    if event is None:
        return None
    trained = {name: tokens(evidence, name, index) for name in (*evidence.honest, saboteur) if name in evidence.events}
    total = fsum(trained.values())
    uids = {s.name: s.uid for s in (*evidence.subnet.honest, *evidence.subnet.saboteurs.values())}
    kept = fsum(count * event["credit"].get(str(uids[name]), 0.0) for name, count in trained.items())
    return round(1 - kept / total, 4) if total else None


def tokens(evidence: Evidence, name: str, index: int) -> int:
    """As its `train` event says; who died in training has only told of its steps."""
    own = [e for e in evidence.events[name] if e["round"] == index]
    train = [e["tokens"] for e in own if e["event"] == "train"]
    steps = [e["step"] + 1 for e in own if e["event"] == "step"]
    return train[-1] if train else max(steps, default=0) * evidence.subnet.manifest.tokens_per_step


# --- what was observed ------------------------------------------------------------------------------


def effects(course: Course, evidence: Evidence) -> list[str]:
    """What could be seen of the fault from outside the process that committed it."""
    if course.injected is None:
        return []
    found = _process_effects(course)
    spec = evidence.subnet.saboteurs[course.trial.name]
    event = next((e for n in evidence.honest if (e := evidence.settled(n, course.trial.round))), None)
    if event is not None and spec.role is Role.MINER:
        found += _round_effects(event, spec.uid)
    if spec.role is Role.VALIDATOR:
        # Who is cut off or slowed down just before its map holds all slices already: it lacks those of the next round.
        found += _map_effects(evidence, course.trial.round, spec.uid) or [
            f"{effect} in the next round" for effect in _map_effects(evidence, course.trial.round + 1, spec.uid)
        ]
    found += _own_effects(course, evidence)
    failed = [
        e for n in evidence.honest for e in evidence.events[n]
        if e["event"] == "audit" and (e["round"], e["target"]) == (course.trial.round, spec.uid)
        and e["verdict"] == "fail"
    ]  # fmt: skip
    found += ["audit failed"] if failed else []
    named = lines_naming(course, evidence)
    return [*found, f"{named} lines in peers' logs"] if named else found


def _process_effects(course: Course) -> list[str]:
    found = [f"ended by signal {-course.exit_code}"] if course.exit_code is not None and course.exit_code < 0 else []
    if course.exit_code is not None and course.exit_code >= 0:
        found.append(f"ended with exit code {course.exit_code}")
    return [*found, "stopped"] if course.stopped else found


def _round_effects(event: Event, uid: int) -> list[str]:
    found = ["not included"] if event["applied"] and uid not in event["included"] else []
    lot = slice_of(event, uid)
    return [*found, f"slice {lot}"] if lot in ("lost", "by backup") else found


def slice_of(event: Event | None, uid: int) -> str | None:
    """What became of the slice that `uid` had to reduce; None: it had none, or the round was not applied."""
    if event is None or not event["applied"]:
        return None
    for j in (int(j) for j, reducer in event["reducers"].items() if reducer == uid):
        return "lost" if j not in event["counted"] else "by backup" if j in event.get("backed_up", ()) else "counts"
    return None


def _map_effects(evidence: Evidence, index: int, uid: int) -> list[str]:
    reads = evidence.reads.get(index)
    maps: dict[int, bytes] = {}
    for neuron in reads.at_map.neurons if reads else ():
        commitment = neuron.commitment
        if commitment and commitment.role is Role.VALIDATOR and commitment.second_round == index and commitment.second:
            maps[neuron.uid] = commitment.second
    others = {found for other, found in maps.items() if other != uid}
    if uid not in maps:
        return ["no map on chain"]
    return [] if maps[uid] in others else ["another map on chain"]


def _own_effects(course: Course, evidence: Evidence) -> list[str]:
    """Did it settle its round, and when? Only what differs from the honest nodes."""
    index, name = course.trial.round, course.trial.name
    seen = evidence.watched.get(index, {}).get("after_end_s", {})
    own, others = seen.get(name), [seen[n] for n in evidence.honest if seen.get(n) is not None]
    if own is None:
        return ["never settled the round"]
    late = own - max(others, default=own)
    return [f"settled it {late:.0f} s after the others"] if late > evidence.subnet.block_s * 2 else []


def lines_naming(course: Course, evidence: Evidence) -> int:
    """Lines of trouble with this peer in honest nodes' logs, from the fault until it was retired."""
    ready = [e for e in evidence.events.get(course.trial.name, ()) if e["event"] == "ready"]
    if not ready:
        return 0
    uid = evidence.subnet.saboteurs[course.trial.name].uid
    marks = (str(ready[-1]["peer_key"])[:12], f"uid {uid} ", f"uid {uid}:")
    count = 0
    for name in evidence.honest:
        data = (evidence.subnet.paths.node(name) / "log.txt").read_bytes()
        part = data[course.logs_from.get(name, 0) : course.logs_to.get(name, len(data))].decode(errors="replace")
        count += sum(any(mark in line for mark in marks) for line in part.splitlines())
    return count
