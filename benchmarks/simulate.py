"""Growth: round time, messages and bytes per node from 4 to 256 miners, on a virtual clock over modelled links."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_SELF, getrusage, struct_rusage
from statistics import mean
from typing import Any

from distributed_training.settings.arguments import new_file, whole
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import SimResult, simulate

DESCRIPTION = """\
Simulate swarms of growing size without faults (python -m distributed_training.simulation --help says how) and measure,
per miner and round, each until it is settled and audited:

  round_s_virtual    from block s+D until a node has kept its last slice: finality of s+D, the exchange, the block of
                     the output hash and its finality. Rounds are as long as the manifest says (54 s), whatever n.
                     of_8: divided by that of 8 miners, where these are measured too; the goal is 1.3 at most at 256
  messages_per_node  frames sent
  bytes_per_node     payload bytes sent; vector_bytes is what theory asks for, 2 (n-1)/n of the encoded vector, and the
                     rest is records, digests, logs, probes and what validators and the owner fetch
  cpu_s, peak_mb     of this process for the whole simulation, and resident memory at its end at most: of all nodes
                     together. Their files lie in memory beside it

Every swarm has the same model, whose vector has a chunk for each of the most miners asked for, so that all can reduce.
"""
BASE, SIZES = 8, (4, 8, 16, 32, 64, 128, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    size, rounds = whole(1, 900, "miners"), whole(1, 1000, "rounds")
    add("--sizes", type=size, nargs="+", default=list(SIZES), metavar="N", help="miners of each swarm")
    help_ = "chunks of the vector at least; default: the largest of --sizes. For rows of several runs that are compared"
    add("--slices", type=size, metavar="N", help=help_)
    add("--rounds", type=rounds, default=1, metavar="N", help="default 1; the nodes are ended in the one after")
    add("--width", type=int, default=48, metavar="N", help="of the model, even; default 48")
    add("--seed", type=int, default=1, metavar="N", help="decides everything; default 1")
    add("--plot", type=new_file, metavar="PNG", help="draw the growth here")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Rows by size. A violated invariant is a failure, named with the command that replays it. Raises ConfigError."""
    rows, failures = [], []
    for miners in args.sizes:
        options = SimOptions(
            miners=miners,
            rounds=args.rounds + 1,
            watched=args.rounds,
            seed=args.seed,
            validators=1,
            width=args.width,
            steps=1,
            min_slices=args.slices or max(args.sizes),
        )
        began = getrusage(RUSAGE_SELF)
        result = simulate(options)
        rows.append(row(result) | spent(began))
        said = f"{rows[-1]['round_s_virtual']:.2f} virtual s, {rows[-1]['cpu_s']:.0f} CPU s, {rows[-1]['peak_mb']} MB"
        print(f"{miners} miners: {said}", flush=True)
        failures += [f"{v.what}: round {v.round}, {', '.join(v.nodes)}; {options.command()}" for v in result.violations]
    base = next((r["round_s_virtual"] for r in rows if r["miners"] == BASE), None)
    for each in rows:
        seconds = each["round_s_virtual"]
        each["of_8"] = round(seconds / base, 3) if seconds and base else None
    if args.plot is not None:
        plot(rows, args.plot)
    return {"name": "simulate", "rows": rows, "failures": failures}


def row(result: SimResult) -> dict[str, Any]:
    n = result.options.miners
    times = [r.seconds for r in result.rows if r.seconds is not None]
    return {
        "miners": n,
        "round_s_virtual": round(mean(times), 3) if times else None,
        "messages_per_node": round(mean(r.messages for r in result.rows), 1),
        "bytes_per_node": round(mean(r.sent_bytes for r in result.rows)),
        "vector_bytes": round(2 * (n - 1) / n * result.wire_bytes),
        "applied": sum(r.applied is True for r in result.rows),
        "rounds": len(result.rows),
        "digest": result.digest,
    }


def spent(began: struct_rusage) -> dict[str, Any]:
    now = getrusage(RUSAGE_SELF)
    cpu_s = now.ru_utime + now.ru_stime - began.ru_utime - began.ru_stime
    return {"cpu_s": round(cpu_s, 1), "peak_mb": now.ru_maxrss >> 10}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Three panels over the number of miners, both axes logarithmic but for the time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = [r["miners"] for r in rows]
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label, log) in zip(
        figure.subplots(1, 3),
        (
            ("round_s_virtual", "s+D until all slices are held, virtual s", False),
            ("messages_per_node", "frames sent by a miner in a round", True),
            ("bytes_per_node", "bytes sent by a miner in a round", True),
        ),
        strict=True,
    ):
        axes.plot(sizes, [r[name] for r in rows], "o-", label="measured")
        if name == "bytes_per_node":
            axes.plot(sizes, [r["vector_bytes"] for r in rows], "--", label="2 (n-1)/n of the vector")
        if name == "messages_per_node":
            first = rows[0]["messages_per_node"] / sizes[0]
            axes.plot(sizes, [first * n for n in sizes], "--", label="proportional to n")
        axes.set(xlabel="miners", title=label, xscale="log", yscale="log" if log else "linear")
        axes.minorticks_off()
        axes.set_xticks(sizes, [str(n) for n in sizes])
        if not log:
            axes.set_ylim(0, 1.2 * max(r[name] or 0.0 for r in rows))
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
