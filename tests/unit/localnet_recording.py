"""A recorded demo run: its events, the view they give, and a summary made from them with plausible chain reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from distributed_training.localnet.events import Event, RunView
from distributed_training.localnet.judge.chain_view import Shares
from distributed_training.localnet.judge.summary import Baselines, ChainFacts, build_summary
from distributed_training.localnet.layout import RunPaths, node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.create import Run
from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import read_preset

RECORDING = Path(__file__).parent / "recorded" / "demo_events.jsonl"
OPTIONS = parse_options(["--speeds", "1,1,2,4", "--run-dir", "recorded", "--rounds", "2"])
SPECS = node_specs(replace(OPTIONS, steps=5))  # of speed 1, when this was recorded
WIRE_BYTES = 865_720
PAID = {3: 0.125, 4: 0.125, 5: 0.25, 6: 0.5}


@cache
def recorded() -> list[tuple[str, Event]]:
    """(node, event) in time order."""
    lines = [json.loads(line) for line in RECORDING.read_text().splitlines()]
    return [(line.pop("node"), line) for line in lines]


def recorded_view() -> RunView:
    view = RunView(SPECS)
    for name, event in recorded():
        view.apply(name, event)
    for node in view.nodes.values():
        node.exit_code = 0
    return view


@cache
def recorded_manifest() -> RunManifest:
    return draft_manifest("local", read_preset("local").model, None, {})


def recorded_summary() -> dict[str, Any]:
    """A summary in which every check holds."""
    incentive = {0: 0.0, 1: 0.0, 2: 0.0, **PAID}
    shares = {r: Shares(58 + 54 * r, {1: PAID, 2: PAID} if r else {}, incentive) for r in range(3)}
    solo = {uid: {-1: 5.38, 0: 4.0, 1: 3.4, 2: 3.2} for uid in PAID}
    view = recorded_view()
    roots = {r: view.nodes["owner"].rounds[r]["state_root"] for r in range(3)}
    rounds = [{"index": r, "recomputed": 4, "root": root} for r, root in roots.items()]
    offline = {"ok": True, "problems": [], "rounds": rounds, "nodes": {}}
    return build_summary(
        Run(RunPaths(OPTIONS.run_dir), recorded_manifest(), SPECS, 1, OPTIONS.params(), resumed=False),
        view,
        ChainFacts(dict.fromkeys(range(3), bytes(32)), shares),
        rounds_wanted=OPTIONS.rounds,
        num_params=859_648,
        wire_bytes=WIRE_BYTES,
        baselines=Baselines(solo, {-1: 5.38, 0: 3.0, 1: 2.9, 2: 2.9}),
        offline=offline,
        watch=watched(range(3)),
    )


def watched(rounds: Iterable[int]) -> dict[str, Any]:
    """What the outside watcher says when all is well."""
    names = sorted(spec.name for spec in SPECS)
    rows = [{"index": r, "settled": list(names), "late": [], "dead": [], "unseen": []} for r in rounds]
    return {"grace_s": 10.0, "longest_pause_s": 0.3, "interrupted": [], "stood_still": [], "rounds": rows}
