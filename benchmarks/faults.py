"""Faults at every point of a round, on real processes: does anybody hang, does anybody diverge, what is lost?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.fault_cells import POINTS, QUICK, Trial, chosen_cells, schedule
from benchmarks.fault_rows import gather, problem, row
from benchmarks.fault_run import SPARE_HOTKEYS, FaultRun
from benchmarks.fault_subnet import FaultSubnet, create
from benchmarks.small_demo import run_folder
from distributed_training.errors import ConfigError
from distributed_training.localnet.options import BLOCK_SECONDS, PORT_BASE
from distributed_training.localnet.run.ports import check_ports
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.settings.arguments import assignment, new_folder
from distributed_training.settings.flags import merge

DESCRIPTION = f"""Kill, freeze, slow, cut and lie at {len(POINTS)} points of a round: rows of fault, point, round_s,
applied, bytes_in_flight, hung, identical, credit_lost, slice (what became of the one that the saboteur had to reduce),
and what was observed from outside.

One subnet of real processes over loopback: an owner, 2 validators and 5 miners that are honest, and one saboteur
(adversaries/saboteur.py) in each round with a hotkey of its own, started four rounds before. An outside observer
with its own clock says who had settled each round by its end plus 10 s; afterwards every round is recomputed from
kept bytes and the chain. A row whose fault took no effect is a failure. The whole table takes about 15 minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--only", metavar="CELLS", help="comma-separated FAULT@POINT, like kill@mid-scatter,lie@*")
    add("--quick", action="store_true", help=f"four cells: {', '.join(QUICK)}")
    add("--block-seconds", type=BLOCK_SECONDS, default=0.5, metavar="S", help="default 0.5: rounds of 16 s")
    add("--port-base", type=PORT_BASE, default=9300, metavar="N", help="first of about 60 ports")
    help_ = "a constant of the run, like average.uplink=sparse or timing.overlap=true; repeatable"
    add("--set", metavar="KEY=VALUE", type=assignment, action="append", default=[], help=help_)
    add("--run-dir", type=new_folder, metavar="DIR", help="new, kept; default: a temporary one that is removed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    trials = schedule(chosen_cells(args.only, args.quick))
    with run_folder(args.run_dir) as root:
        if any(root.iterdir()):
            raise ConfigError(f"--run-dir {root} is not empty; expected a new directory")
        overrides = merge(*args.set)
        subnet = create(root, hotkeys(trials), args.block_seconds, args.port_base, overrides=overrides)
        return measure(subnet, trials)


def hotkeys(trials: Sequence[Trial]) -> list[str]:
    """Those of the schedule, the validator slot, and some spare ones."""
    miners = sum(not t.cell.validator for t in trials)
    return ["saboteur-validator", *(f"saboteur-{n}" for n in range(miners + SPARE_HOTKEYS))]


def measure(subnet: FaultSubnet, trials: Sequence[Trial]) -> dict[str, Any]:
    check_ports({spec.port: spec.name for spec in (*subnet.honest, *subnet.saboteurs.values())})
    say(f"{len(trials)} faults, one a round of {subnet.round_s:.0f} s; run directory {subnet.paths.root}")
    with NodeProcesses() as processes:
        course = FaultRun(subnet, trials, processes, say)
        course.run()
    assert course.watcher is not None
    say("all processes ended; recomputing every round")
    evidence = gather(subnet, course.watcher.observer.rounds())
    newest = {str(c.trial.cell): c for c in course.courses}  # a repeated cell counts by its second try
    rows = [row(c, evidence) for c in newest.values()]
    checks = [c for _, c in sorted(evidence.checks.items())]
    return {
        "name": "faults",
        "rows": rows,
        "failures": [found for line in rows if (found := problem(line))],
        "summary": summary(rows),
        "rounds": [{"round": c.index, "applied": c.applied, "reason": c.reason, "root": c.root} for c in checks],
        "offline_problems": [f"round {c.index}: {p}" for c in checks for p in c.problems],
        "longest_pause_s": round(course.watcher.observer.longest_pause_s, 2),
        "round_nominal_s": subnet.round_s,
    }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cells": len(rows),
        "hung": sum(line["hung"] for line in rows),
        "not_identical": sum(not line["identical"] for line in rows),
        "not_applied": sum(not line["applied"] for line in rows),
        "without_effect": sum(not line["effect"] for line in rows),
        "round_s_max": max((line["round_s"] for line in rows if line["round_s"] is not None), default=None),
    }


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S ") + text, flush=True)
