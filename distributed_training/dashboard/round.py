"""round/N.json: one round, of its own events alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distributed_training.dashboard.fold import MAX_FAULTS
from distributed_training.dashboard.reading import NamedEvent
from distributed_training.dashboard.values import (
    MAX_NAME,
    Event,
    audit_row,
    by_uid,
    cards_of,
    fault_row,
    number,
    shares,
    text,
    uid_of,
    uids,
)

MAX_SLICES = 4096
MAX_PHASES = 12  # of a node; a restart begins a round again


def round_document(
    index: int,
    events: Sequence[NamedEvent],
    weights: Mapping[int, Mapping[int, float]],
    incentive: Mapping[int, float],
) -> dict[str, Any] | None:
    """weights, incentive: of the chain when the round was settled, where it was asked. None: nothing is told of it."""
    if not events:
        return None
    start = next((time for _, e in events if (time := number(e.get("time"))) is not None), 0.0)
    of = {kind: [(n, e) for n, e in events if e["event"] == kind] for kind in KINDS}
    told = next((e for _, e in of["round"]), None)
    said = {uid_of(e.get("uid")): shares(e.get("weights")) for _, e in of["weights"]}
    ends = [time for _, e in of["round"] if (time := number(e.get("time"))) is not None]
    return {
        "index": index,
        "applied": None if told is None else bool(told.get("applied")),
        "reason": None if told is None else text(told.get("reason")),
        "start": start,
        "end": max(ends, default=None),
        "timeline": timeline(events, start),
        "slices": [] if told is None else slices(told),
        "matrix": None if told is None else matrix(told),
        "credit": {} if told is None else _keys(shares(told.get("credit"))),
        "train": [_train(e) for _, e in of["train"]],
        "scores": {str(uid_of(e.get("uid"))): _keys(cards_of(e)) for _, e in of["scores"]},
        "audits": [audit_row(uid_of(e.get("uid")), e) for _, e in of["audit"]],
        "weights": {str(v): _keys(row) for v, row in sorted((said | dict(weights)).items(), key=str)},
        "incentive": _keys(incentive),
        "faults": [fault_row(n[:MAX_NAME], uid_of(e.get("uid")), e) for n, e in of["fault"][:MAX_FAULTS]],
    }


KINDS = ("round", "train", "scores", "audit", "weights", "fault")


def timeline(events: Sequence[NamedEvent], start: float) -> list[dict[str, Any]]:
    """Phases of each node, in seconds from the round's first event; the last one ends when the node settled it."""
    found: dict[str, dict[str, Any]] = {}
    for name, event in events:
        kind, time = event["event"], number(event.get("time"))
        if time is None or kind not in ("phase", "round", "train", "scores"):
            continue
        fresh = {"name": name[:MAX_NAME], "uid": uid_of(event.get("uid")), "role": text(event.get("role"), MAX_NAME)}
        row = found.setdefault(name, fresh | {"phases": [], "stall_s": None})
        phases, at = row["phases"], round(time - start, 3)
        if kind == "train":
            row["stall_s"] = number(event.get("stall_s"))
            continue
        if phases and phases[-1]["end"] is None:
            phases[-1]["end"] = at
        if kind == "phase" and len(phases) < MAX_PHASES:
            phases.append({"phase": text(event.get("phase"), MAX_NAME), "start": at, "end": None})
    return [row for row in found.values() if row["phases"]]


def slices(event: Event) -> list[dict[str, Any]]:
    count = number(event.get("num_slices")) or 0
    reducers, counted, backed = shares(event.get("reducers")), set(uids(event.get("counted"))), event.get("backed_up")
    backed_up = set(uids(backed))
    return [
        {
            "index": j,
            "reducer": int(reducers[j]) if j in reducers else None,
            "state": "lost" if j not in counted else "backed_up" if j in backed_up else "counted",
        }
        for j in range(min(int(count), MAX_SLICES))
    ]


def matrix(event: Event) -> dict[str, Any] | None:
    """A row a sender, a cell a slice: its own, in, out, or None: the slice does not count, or nobody said."""
    if not event.get("applied"):
        return None
    credit, parts = shares(event.get("credit")), slices(event)
    senders = sorted(credit)
    missing = {j: set(uids(who)) for j, who in by_uid(event.get("missing")).items()}

    def cell(sender: int, part: Mapping[str, Any]) -> str | None:
        if part["state"] == "lost":
            return None
        if sender in missing.get(part["index"], ()) or credit[sender] == 0.0:
            return "out"
        if credit[sender] < 1.0 and "missing" not in event:  # as older versions told it
            return None
        return "own" if part["reducer"] == sender else "in"

    return {"senders": senders, "cells": [[cell(sender, part) for part in parts] for sender in senders]}


def _train(event: Event) -> dict[str, Any]:
    keys = ("steps", "tokens", "loss_first", "loss_last", "seconds")
    return {"uid": uid_of(event.get("uid"))} | {key: number(event.get(key)) for key in keys}


def _keys(values: Mapping[int, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in sorted(values.items())}
