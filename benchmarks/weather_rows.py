"""What bad weather did, from what is left after the run: the nodes' events, the chain's extrinsics, kept bytes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from benchmarks.weather_run import Leg, WeatherRun
from distributed_training.chain.keys import derive_keypair
from distributed_training.chain.local.genesis import chain_params
from distributed_training.chain.local.store import open_file
from distributed_training.localnet.judge.offline import check_run
from distributed_training.protocol.types import Role

SEED = 11  # of fault_subnet's keys
COMMITMENT = "set_commitment"
FAULTY = {
    "crashes": "crashes",
    "doubled": "submissions were made twice",
    "lost": "weight sets were lost",
    "failed": "audits failed",
}
Event = dict[str, Any]
Write = tuple[int, str, str, str]  # block, signer, function, its parameters as text


def judge(course: WeatherRun) -> tuple[list[dict[str, Any]], list[str]]:
    """(a row per leg, what the offline check found). Call when no process runs any more."""
    events = {s.name: read_events(course, s.name) for s in course.subnet.honest}
    checks, _ = check_run(course.subnet.paths)
    applied = {check.index: check.applied for check in checks}
    everything = writes(course)
    rows = [row(course, leg, events, everything, applied) for leg in course.legs]
    calm = next((r["shares"] for r in rows if r["leg"] == "calm"), {})
    for line in rows:
        shares = [line["shares"].get(uid, 0.0) / share for uid, share in calm.items() if share > 0]
        line["pay"] = round(min(shares), 3) if shares and line["shares"] else None
        del line["shares"]
    return rows, [f"round {c.index}: {p}" for c in checks for p in c.problems]


def read_events(course: WeatherRun, name: str) -> list[Event]:
    path = course.subnet.paths.node(name) / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def writes(course: WeatherRun) -> list[Write]:
    """Every extrinsic that the chain took, in order."""
    with closing(open_file(course.subnet.paths.chain)) as connection:
        found = connection.execute("select block, signer, call from extrinsics order by block, idx").fetchall()
    calls = [(block, signer, json.loads(call)) for block, signer, call in found]
    return [(b, s, c["call_function"], json.dumps(c["params"], sort_keys=True)) for b, s, c in calls]


def row(
    course: WeatherRun,
    leg: Leg,
    events: Mapping[str, Sequence[Event]],
    everything: Sequence[Write],
    applied: Mapping[int, bool],
) -> dict[str, Any]:
    def block(moment: float) -> float:
        return (moment - course.genesis) / course.subnet.block_s

    timing = course.subnet.manifest.timing
    began, ended = (block(leg.began), block(leg.ended)) if leg.name != "start" else (-1.0, 0.5)
    rounds = [i for i in applied if began <= timing.first_block + i * timing.length < ended]
    mine = {n: [e for e in found if leg.began <= e["time"] < leg.ended] for n, found in events.items()}
    audits = [e for found in mine.values() for e in found if e["event"] == "audit"]
    limit = chain_params(course.subnet.paths.chain).weights_rate_limit
    due, lost = weight_sets(course, mine, everything, limit)
    return {
        "leg": leg.name,
        "min": round((leg.ended - leg.began) / 60, 1),
        "rounds": len(rounds),
        "applied": sum(applied[i] for i in rounds),
        "faults": leg.faults.total(),
        "crashes": leg.crashes,
        "doubled": doubled((w for w in everything if began <= w[0] < ended), limit),
        "due": due,
        "lost": lost,
        "audits": len(audits),
        "failed": sum(e["verdict"] == "fail" for e in audits),
        "duty": min((e["duty"] for e in audits if e["duty"] is not None), default=None),
        "shares": pay(mine),
    }


def doubled(found: Iterable[Write], within: int) -> int:
    """Writes that say again what their signer's last one of that kind said within so many blocks.

    Commitments name their round; weights may well be the same a round later.
    """
    last: dict[tuple[str, str], tuple[int, str]] = {}
    again = 0
    for block, signer, function, params in found:
        former, said = last.get((signer, function), (0, ""))
        again += said == params and block - former < within
        last[signer, function] = (block, params)
    return again


def weight_sets(
    course: WeatherRun, mine: Mapping[str, Sequence[Event]], everything: Sequence[Write], limit: int
) -> tuple[int, int]:
    """(weight sets that were due, those of them that the chain never got). One is due for every scored round, but one
    that newer scores overtake within the chain's rate limit."""
    due = lost = 0
    for spec in course.subnet.honest:
        if spec.role is not Role.VALIDATOR:
            continue
        hotkey = derive_keypair(SEED, spec.name).ss58_address
        landed = [b for b, signer, function, _ in everything if signer == hotkey and function != COMMITMENT]
        at = [(e["time"] - course.genesis) / course.subnet.block_s for e in mine[spec.name] if e["event"] == "scores"]
        for began, following, ended in zip(at, at[1:], at[2:], strict=False):
            if following - began >= limit:
                due += 1
                lost += not any(began < block <= ended + 1 for block in landed)
    return due, lost


def pay(mine: Mapping[str, Sequence[Event]]) -> dict[str, float]:
    """Mean share of each uid in the weights that were set."""
    total, count = Counter[str](), 0
    for event in (e for found in mine.values() for e in found if e["event"] == "weights"):
        shares = {uid: share for uid, share in event["weights"].items() if share > 0}
        whole = sum(shares.values())
        total.update({uid: share / whole for uid, share in shares.items()})
        count += 1
    return {uid: share / count for uid, share in total.items()}


def problems(rows: Sequence[Mapping[str, Any]], offline: Sequence[str]) -> list[str]:
    found = [f"{line['leg']}: {line[what]} {told}" for line in rows for what, told in FAULTY.items() if line[what]]
    idle = [f"{line['leg']}: no round was applied" for line in rows if line["rounds"] > 2 and not line["applied"]]
    return [*found, *idle, *offline]
