"""What a node's own numbers take of memory and processor in a round, training, chain and network left out."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed_training.averaging.memory import memory_plan
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import read_preset
from distributed_training.settings.arguments import whole

DESCRIPTION = """\
Run rounds of one miner that reduces a slice, then of one validator, each in a fresh process, with invented vectors and
what --senders miners send in a round, and measure every phase of the last round:

  peak_mb       the most resident memory in the phase, above what the imports take
  copies        the same in float32 vectors of so many parameters
  planned       what averaging/memory.py says of the phase, from which create_run prints what a run needs
  cpu_s         of the phase; the last row of a role is the whole round
  ns            of processor, for each parameter

encode: the pseudo-gradient, its chunks, norms and digests, the file. reduce: checks of what came, the slice, its file.
gather: checks and files of all slices. apply: gate, outer step and root. snapshot: the state's file. compare: a whole
vector against what was committed, as an audit of full depth. Needs Linux, and disk for three times the state.
"""
RECIPE = "gpt2-124m"
GOAL_S = 4.0  # of a miner's round at 124 M parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size = whole(1 << 18, 1 << 33, "parameters")
    add("--params", type=size, default=124_475_904, metavar="N", help="parameters; default 124475904")
    add("--senders", type=whole(1, 64, "senders"), default=4, metavar="N", help="all of them reduce; default 4")
    add("--rounds", type=whole(1, 100, "rounds"), default=3, metavar="N", help="default 3: then nothing more is kept")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A phase that takes more than the plan says is a failure, as is a miner's round above the goal."""
    if not Path("/proc/self/clear_refs").exists():
        raise ConfigError("memory needs Linux, whose /proc/self/clear_refs forgets the highest mark of a process")
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="dt-memory-") as name:
        folder, manifest = Path(name), _manifest()
        (folder / "manifest.json").write_bytes(manifest.canonical())
        asked = {"params": args.params, "senders": args.senders, "rounds": args.rounds}
        (folder / "group.json").write_text(json.dumps(asked))
        _node("prepare", folder)
        for role in (Role.MINER, Role.VALIDATOR):
            rows += _rows(role, _node(role.name.lower(), folder), manifest, args)
    failures = [
        f"{row['role']}, {row['phase']}: {row['copies']:.2f} vectors, the plan says {row['planned']:.2f}"
        for row in rows
        if row["copies"] > row["planned"]
    ]
    took_s, goal_s = next(row["cpu_s"] for row in rows if row["phase"] == "round"), GOAL_S * args.params / 124e6
    if took_s > goal_s:
        failures.append(f"a round of a miner took {took_s:.1f} s of processor, expected at most {goal_s:.1f}")
    return {"name": "memory", "rows": rows, "failures": failures}


def _manifest() -> RunManifest:
    """Of the preset that mainnet starts from."""
    return draft_manifest(RECIPE, read_preset(RECIPE).model, None, {"netuid": 1})


def _node(what: str, folder: Path) -> list[dict[str, Any]]:
    argv = [sys.executable, "-m", "benchmarks.memory_node", what, str(folder)]
    told = subprocess.run(argv, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in told.splitlines()]


def _rows(
    role: Role, measured: list[dict[str, Any]], manifest: RunManifest, args: argparse.Namespace
) -> list[dict[str, Any]]:
    plan = memory_plan(manifest, (("all", (args.params,)),), role, senders=args.senders)
    whole_round = {
        "phase": "round",
        "peak_mb": max(row["peak_mb"] for row in measured),
        "cpu_s": sum(row["cpu_s"] for row in measured),
    }
    most = max(plan.host.values())
    return [
        {
            "role": role.name.lower(),
            "phase": row["phase"],
            "peak_mb": row["peak_mb"],
            "copies": row["peak_mb"] * 1e6 / (4 * args.params),
            "planned": plan.host.get(row["phase"], most) / (4 * args.params),
            "cpu_s": row["cpu_s"],
            "ns": row["cpu_s"] / args.params * 1e9,
        }
        for row in (*measured, whole_round)
    ]
