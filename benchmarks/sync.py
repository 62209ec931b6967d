"""How long a joining node takes to fetch a state from one and from several donors, over links with a bandwidth.

Real processes with real libp2p, each in a network namespace of its own; every donor's uplink is shaped with tbf, the
joiner's downlink is wide. The state is random numbers of a GPT-2's size; every chunk is checked as it arrives, and the
root of what is loaded from disk at the end. Needs root and iproute2, and twice the state's size of free disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.namespaces import MAX_HOSTS, Host, Namespaces, NamespacesUnavailable
from distributed_training.errors import ConfigError
from distributed_training.network.identity import PeerIdentity
from distributed_training.protocol.types import Carry
from distributed_training.settings.arguments import real, whole
from distributed_training.snapshots.header import Shape
from distributed_training.snapshots.states import StateFiles
from distributed_training.training.outer import RunState, state_root

DESCRIPTION = __doc__ or ""
ROUND, PORT = 8, 9100
LEAST_SPEEDUP = 0.75  # of the ideal: 4 donors at least 3 times as fast as 1
READY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--donors", type=_counts, default=(1, 2, 4), metavar="N,N,...", help="numbers of donors; default 1,2,4")
    add("--mbit", type=real(0.1, 1e5, "Mbit/s"), default=100.0, metavar="R", help="uplink of each donor; default 100")
    size = whole(1, 1 << 31, "coordinates")
    add("--params", type=size, default=124_000_000, metavar="N", help="parameters; default 124000000")
    add("--chunk-coords", type=size, default=1 << 18, metavar="N", help="default 262144, mainnet's")
    add("--seed", type=whole(0, 1 << 32, "a seed"), default=1, metavar="N", help="of the numbers; default 1")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One row per number of donors. `failures` names what is slower than it should be, or not the same state."""
    counts = args.donors
    folder = Path(tempfile.mkdtemp(prefix="dt-sync-"))
    try:
        with Namespaces() as net:
            plan = _prepare(net, folder, max(counts), args)
            rows = []
            for count in counts:
                rows.append(_measure(plan, folder, count, args.mbit))
                print(f"{count} donors: {rows[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    except NamespacesUnavailable as error:
        raise ConfigError(f"sync needs network namespaces: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for row in rows:
        row["speedup"] = rows[0]["seconds"] / row["seconds"]
    return {"name": "sync", "rows": rows, "failures": _failures(rows)}


def _counts(text: str) -> tuple[int, ...]:
    if not all(part.isdigit() and 1 <= int(part) < MAX_HOSTS for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to {MAX_HOSTS - 1} like 1,2,4, not {text!r}")
    return tuple(int(part) for part in text.split(","))


def _failures(rows: list[dict[str, Any]]) -> list[str]:
    found = [f"{row['donors']} donors: another state arrived" for row in rows if not row["same_root"]]
    for row in rows[1:]:
        ideal = row["donors"] / rows[0]["donors"]
        if row["speedup"] < LEAST_SPEEDUP * ideal:
            found.append(f"{row['donors']} donors are {row['speedup']:.2f} times as fast as {rows[0]['donors']}")
    return found


class _Plan:
    """Hosts by folder name, and the file that tells every node who there is."""

    def __init__(self, hosts: dict[str, Host], file: Path, num_bytes: int) -> None:
        self.hosts, self.file, self.num_bytes = hosts, file, num_bytes


def _prepare(net: Namespaces, folder: Path, donors: int, args: argparse.Namespace) -> _Plan:
    root = _write_state(folder / "donor0", args)
    nodes, hosts = [], {}
    for number, name in enumerate([*(f"donor{i}" for i in range(donors)), "joiner"]):
        uplink = int(args.mbit * 1e6 / 8) if name != "joiner" else None
        hosts[name] = net.host(name, egress=uplink)
        home = folder / name
        (home / "state").mkdir(parents=True, exist_ok=True)
        if name not in ("donor0", "joiner"):  # the same bytes under another name: the disk is not what is measured
            for path in (folder / "donor0" / "state").iterdir():
                os.link(path, home / "state" / path.name)
        key = PeerIdentity.load_or_create(home / "identity.key").public_key
        nodes.append({"folder": name, "number": number, "peer_key": key.hex(), "ip": hosts[name].address, "port": PORT})
    plan = {"nodes": nodes, "round": ROUND, "root": root.hex()}
    plan |= {"num_coords": args.params, "chunk_coords": args.chunk_coords}
    (folder / "plan.json").write_text(json.dumps(plan))
    return _Plan(hosts, folder / "plan.json", Shape(args.params, args.chunk_coords).num_bytes)


def _write_state(home: Path, args: argparse.Namespace) -> bytes:
    """The donors' state and its header; returns the root."""
    (home / "state").mkdir(parents=True)
    source = np.random.default_rng(args.seed)
    params, momentum = (source.standard_normal(args.params, np.float32) for _ in range(2))
    state = RunState(params, momentum, ROUND, Carry(50.0, ()))
    files = StateFiles(home / "state")
    files.put(ROUND, state)
    with files.open(ROUND) as file:
        files.header(ROUND, file, Shape(args.params, args.chunk_coords))
    return state_root(state, args.chunk_coords)


def _measure(plan: _Plan, folder: Path, donors: int, mbit: float) -> dict[str, Any]:
    with ExitStack() as stack:
        givers = [_start(plan, folder, f"donor{i}", stack) for i in range(donors)]
        for giver in givers:
            if not _line(giver, READY_S).get("ready"):
                raise RuntimeError("a donor did not start")
        before = [plan.hosts[f"donor{i}"].sent() for i in range(donors)]
        limit_s = plan.num_bytes / (donors * mbit * 1e6 / 8)
        joiner = _start(plan, folder, "joiner", stack, str(donors))
        result = _line(joiner, 60 + 5 * limit_s)
        sent = sum(plan.hosts[f"donor{i}"].sent() - before[i] for i in range(donors))
        donors_cpu_s = sum(_ended(giver) for giver in givers)
    shutil.rmtree(folder / "joiner" / "state")
    (folder / "joiner" / "state").mkdir()
    return {
        "donors": donors,
        "seconds": result["seconds"],
        "limit_s": limit_s,  # bytes of the state / bandwidth of all uplinks together
        "mb_per_s": result["bytes"] / result["seconds"] / 1e6,
        "on_wire": sent / result["bytes"],  # with all headers and whatever was asked for twice
        "given_mb": "+".join(f"{count / 1e6:.0f}" for count in result["by_donor"]),
        "joiner_cpu_s": result["cpu_s"],
        "donors_cpu_s": donors_cpu_s,
        "same_root": result["same_root"],
    }


def _start(plan: _Plan, folder: Path, name: str, stack: ExitStack, *more: str) -> subprocess.Popen[str]:
    kind = "joiner" if name == "joiner" else "donor"
    argv = [sys.executable, "-m", "benchmarks.sync_node", kind, folder / name, plan.file, *more]
    process = plan.hosts[name].popen(
        argv, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(_end, process)
    return process


def _line(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """The next line that a node prints. Raises RuntimeError when it ends or stays silent."""
    assert process.stdout is not None
    watch = threading.Timer(timeout_s, process.kill)
    watch.start()
    try:
        line = process.stdout.readline()
    finally:
        watch.cancel()
    if not line:
        raise RuntimeError(f"a node ended or said nothing for {timeout_s:.0f} s")
    return json.loads(line)


def _ended(giver: subprocess.Popen[str]) -> float:
    """CPU seconds of a donor, which ends when its stdin does."""
    assert giver.stdin is not None
    giver.stdin.close()
    return _line(giver, READY_S)["cpu_s"]


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5.0)
