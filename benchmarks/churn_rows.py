"""What a churn run came to: a row per round, totals, and whatever must not be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed_training.localnet.events import RunEvents, RunView
from distributed_training.localnet.judge import offline, watcher
from distributed_training.localnet.judge.summary import rounds_seen
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.run.kills import FIRST_ROUND


def result(run: Run, events: RunEvents, joined: Mapping[str, int], rounds: int) -> dict[str, Any]:
    view = events.view
    verdicts = read(run.paths.root / watcher.RESULT).get("rounds", {})
    done = faults_done(events, joined)
    owed = {n.name: joined.get(n.name, 0) for n in view.of_role("miner")}
    rows = [row_of(run, view, index, verdicts.get(str(index)), done, owed) for index in rounds_seen(view) if index >= 0]
    checked = read(run.paths.root / offline.RESULT)
    losses = [row["heldout_loss"] for row in rows if row["heldout_loss"] is not None]
    total = sum(row.pop("owed") for row in rows)
    credited = sum(row.pop("credited") for row in rows)
    totals = {
        "rounds": len(rows),
        "applied": sum(row["applied"] for row in rows),
        "kills": sum(e["event"] == "killed" for e in events.notes),
        "added": sum(n in {m.name for m in view.of_role("miner") if m.ready} for n in joined),
        "survivors": sum(len(e.get("survivors") or []) for e in events.notes if e["event"] == "restarted"),
        "loss_first": view.heldout().get(-1),
        "loss_last": losses[-1] if losses else None,
        "tokens_owed": total,
        "tokens_credited": round(credited),
        "tokens_lost_share": round(1 - credited / total, 4) if total else None,
        "offline_ok": checked.get("ok"),
    }
    return {"name": "churn", "rows": rows, "failures": failures(rows, totals, checked, rounds), "totals": totals}


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def faults_done(events: RunEvents, joined: Mapping[str, int]) -> dict[int, str]:
    """Round -> what really happened in it."""
    done: dict[int, list[str]] = {}
    for e in events.notes:
        if e["event"] == "killed":
            done.setdefault(e["round"], []).append(f"kill {e['name']} at {e['phase']}")
    for name, index in joined.items():
        if events.view.nodes.get(name) is not None:
            done.setdefault(index, []).append(f"add {name}")
    return {index: ", ".join(what) for index, what in done.items()}


def row_of(
    run: Run, view: RunView, index: int, watched: Mapping[str, Any] | None, done: Mapping[int, str],
    owed_from: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    told = {n.name: n.rounds[index] for n in view.nodes.values() if index in n.rounds}
    first = next(iter(told.values()))
    verdicts = {} if watched is None else watched["verdicts"]
    tokens = next((e["tokens"] for e in told.values() if e.get("tokens")), {})
    credit = first.get("credit") or {}
    per_miner = run.manifest.tokens_per_step * (next(s.steps for s in run.specs if s.steps) or 0)
    owed = per_miner * sum(since <= index for since in owed_from.values())
    credited = sum(tokens.get(uid, 0) * share for uid, share in credit.items()) if first["applied"] else 0.0
    same = len({(e["state_root"], e["applied"], e["reason"]) for e in told.values()}) == 1
    return {
        "round": index,
        "fault": done.get(index),
        "applied": bool(first["applied"]),
        "reason": None if first["applied"] else first["reason"],
        "live": sum(v != watcher.DEAD for v in verdicts.values()),
        "late": sorted(n for n, v in verdicts.items() if v == watcher.LATE),
        "identical": same,
        "included": len(first["included"]),
        "counted": f"{len(first['counted'])}/{first['num_slices']}",
        "heldout_loss": view.heldout().get(index),
        "lost": round(1 - credited / owed, 3) if owed else None,
        "owed": owed,
        "credited": credited,
    }


def failures(
    rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], checked: Mapping[str, Any], rounds: int
) -> list[str]:
    """Whatever must not be."""
    found = [f"round {r['round']}: {', '.join(r['late'])} late" for r in rows if r["late"]]
    found += [f"round {r['round']}: live nodes differ" for r in rows if not r["identical"]]
    found += [f"round {r['round']}: nothing was done to anybody" for r in rows[FIRST_ROUND:rounds] if not r["fault"]]
    found += [f"round {index}: nobody settled it" for index in range(rounds) if index not in {r["round"] for r in rows}]
    found += [f"offline check: {p}" for p in checked.get("problems", ["did not run to its end"])]
    first, last = totals["loss_first"], totals["loss_last"]
    if first is None or last is None or last >= first:
        found.append(f"held-out loss did not fall: {first} to {last}")
    if totals["survivors"]:
        found.append(f"{totals['survivors']} processes outlived their node")
    return found
