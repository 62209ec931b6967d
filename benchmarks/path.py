"""What each step between the trained vector and the next state costs a node, over real libp2p."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from distributed_training.settings.arguments import whole

DESCRIPTION = """\
Rounds of the all-reduce with invented vectors between nodes of one process, each with its own libp2p daemon, over
loopback; every node reduces, every chunk passes the gate, all roots are the same. CPU nanoseconds per parameter and
node in the last round, each step without the others that it calls:

  encode, norm, digest, parse, decode   the codec's arithmetic, wherever it is called
  reduce, gates                         what is left of reducing and of judging chunks
  files                                 what is written for restarts, audits and others, and read again
  outer step and root                   with the digests of the new state
  streams, loop, the rest               Python between the socket and these
  libp2p daemon                         encrypts and copies, in a process of its own

arithmetic is the sum without the last three lines' bytes that move (files, streams, daemon). waiting: CPU milliseconds
a node spends in a block of 12 s while it waits for a sender that is silent.
"""
GOAL_NS = 20.0  # everything, on a machine that does nothing else: processors that are shared count more
MOVES = ("files", "streams, loop, the rest", "libp2p daemon")
WAIT_S = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--params", type=whole(1 << 18, 1 << 32, "parameters"), default=31_000_000, metavar="N", help="default 31000000"
    )
    add("--peers", type=whole(2, 16, "peers"), default=4, metavar="N", help="default 4")
    add("--rounds", type=whole(1, 100, "rounds"), default=2, metavar="N", help="the last is measured; default 2")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """More than GOAL_NS in all is a failure."""
    found = _child("round", args.params, args.peers, args.rounds)
    waited = _child("wait", 1 << 20, args.peers, WAIT_S)
    ns: dict[str, float] = found["ns"]
    total = sum(ns.values())
    sums = {"arithmetic": total - sum(ns[name] for name in MOVES), "everything": total}
    rows: list[dict[str, Any]] = [{"step": step, "ns": value} for step, value in (ns | sums).items()]
    rows += [{"step": step, "seconds": took} for step, took in found["walls"].items()]
    rows.append({"step": "peak of a node, imports shared", "mb": found["mib"] * 1.048576})
    rows.append({"step": "waiting, a block: own process", "ms": waited["own_ms"]})
    rows.append({"step": "waiting, a block: libp2p daemon", "ms": waited["daemon_ms"]})
    failures = [f"{total:.1f} ns a parameter, the goal is {GOAL_NS:g}"] if total > GOAL_NS else []
    return {"name": "path", "rows": rows, "failures": failures}


def _child(*asked: object) -> dict[str, Any]:
    argv = [sys.executable, "-m", "benchmarks.path_round", *map(str, asked)]
    told = subprocess.run(argv, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(told.splitlines()[-1])
