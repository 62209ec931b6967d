"""What a node burns while it waits: processor seconds a block of real processes that have nothing to do yet."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks import fault_subnet
from benchmarks.small_demo import run_folder
from distributed_training.chain.local.genesis import start_clock
from distributed_training.errors import ConfigError
from distributed_training.localnet.options import PORT_BASE
from distributed_training.localnet.run.ports import check_ports
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.metrics.following import Follower
from distributed_training.settings.arguments import new_folder, real, whole

DESCRIPTION = """Processor seconds of nodes that wait: rows of block_s, node, ms_a_block, daemon_ms_a_block.

Real processes over loopback, an owner, a validator and two miners, on a chain whose first round is far away: they
follow the chain, keep their connections and answer each other, and do nothing else. Counted with psutil, the
libp2p daemon of each apart; other work on the machine costs time and no processor seconds of theirs."""

NODES = ("owner", "validator-0", "miner-0", "miner-1")
FIRST_BLOCK = 10_000
READY_S = 240.0
SETTLE_BLOCKS = 2  # after all are ready


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--block-seconds", type=real(0.25, 60, "seconds"), nargs="+", default=[1.0, 12.0], metavar="S")
    add("--seconds", type=whole(10, 3600, "seconds"), default=60, metavar="S", help="of each row; default 60")
    add("--port-base", type=PORT_BASE, default=9500, metavar="N", help="first of 4 ports")
    add("--run-dir", type=new_folder, metavar="DIR", help="new, kept; default: a temporary one that is removed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with run_folder(args.run_dir) as root:
        for number, block_s in enumerate(args.block_seconds):
            rows += measured(root / str(number), block_s, args.seconds, args.port_base)
    return {"name": "waiting", "rows": rows, "failures": []}


def measured(root: Any, block_s: float, seconds: float, port_base: int) -> list[dict[str, Any]]:
    timing = {**fault_subnet.OVERRIDES["timing"], "first_block": FIRST_BLOCK}
    subnet = fault_subnet.create(root, (), block_s, port_base, NODES, overrides={"timing": timing})
    check_ports({spec.port: spec.name for spec in subnet.honest})
    with NodeProcesses() as processes:
        for spec in subnet.honest:
            command = subnet.command(spec, None, 1)
            processes.start(spec.name, command, subnet.paths.node(spec.name) / "log.txt")
        start_clock(subnet.paths.chain)
        _until_ready(subnet)
        time.sleep(SETTLE_BLOCKS * block_s)
        pids = {spec.name: processes.pid(spec.name) for spec in subnet.honest}
        blocks = max(1, round(seconds / block_s))
        before = {name: cpu_s(pid) for name, pid in pids.items() if pid is not None}
        time.sleep(blocks * block_s)
        after = {name: cpu_s(pid) for name, pid in pids.items() if pid is not None}
    return [
        {
            "block_s": block_s,
            "node": name,
            "blocks": blocks,
            "ms_a_block": round(1000 * (after[name][0] - before[name][0]) / blocks, 1),
            "daemon_ms_a_block": round(1000 * (after[name][1] - before[name][1]) / blocks, 1),
        }
        for name in before
    ]


def _until_ready(subnet: fault_subnet.FaultSubnet) -> None:
    waiting = {s.name: Follower(subnet.paths.node(s.name) / "events.jsonl") for s in subnet.honest}
    until = time.monotonic() + READY_S
    while waiting:
        if time.monotonic() > until:
            raise ConfigError(f"not ready within {READY_S:.0f} s: {', '.join(sorted(waiting))}")
        for name, events in list(waiting.items()):
            if any(event["event"] == "ready" for event in events.read()):
                del waiting[name]
        time.sleep(0.2)


def cpu_s(pid: int) -> tuple[float, float]:
    """Of a node's own process, and of those that it started."""
    node = psutil.Process(pid)
    times: Sequence[Any] = [process.cpu_times() for process in (node, *node.children(recursive=True))]
    each = [spent.user + spent.system for spent in times]
    return each[0], sum(each[1:])
