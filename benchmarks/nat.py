"""A miner behind NAT with no port open, in whole rounds: real nodes, each in a network namespace of its own.

The chain is a file, so it is shared; everything else goes over the namespaces' links.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.namespaces import Host, Namespaces, NamespacesUnavailable
from benchmarks.small_demo import demo_options, run_folder
from distributed_training.chain.local.genesis import start_clock
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import REPOSITORY, NodeSpec
from distributed_training.localnet.run.create import Run, open_or_create
from distributed_training.localnet.run.processes import THREAD_VARIABLES, node_command
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import new_folder, whole

DESCRIPTION = """\
Two reachable miners, one validator and one miner behind NAT with no port open (--axon.outbound_only), each a real
process in a network namespace of its own. One row per round:

  included, credit   was the miner behind NAT in the average, with which share of the counted chunks
  reducers           who reduced; never the one behind NAT
  probe, duty        bytes/s of the validator's timed download from it; its duty (at most 0.8 without reducing)
  others             the slowest such download from the two reachable miners
  identical          one state root on all four nodes

Fails if a direct connection to it can be made, from the validator's host, by whatever address.
Needs root, iproute2, and iptables or nft.
"""
HIDDEN = "miner-2"
RATE = whole(10_000, 1 << 40, "bytes per second")
READY_S = 180.0
DIAL = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),2)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, default=4, metavar="N", help="rounds; default 4, about 3 minutes")
    add("--block-seconds", type=float, default=0.5, metavar="S", help="length of a block; default 0.5")
    add("--run-dir", type=new_folder, metavar="DIR", help="new, kept; default: a temporary one that is removed")
    add(
        "--announce",
        action="store_true",
        help="its operator forgot that the port is shut: it announces its router and "
        "reduces; the node has to notice and say so",
    )
    add("--rate", type=RATE, metavar="B", help="bytes per second of every host's link, both ways; default: unshaped")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """{"name", "rows", "failures", "totals"}. Raises ConfigError."""
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(run_folder(args.run_dir))
            prepared = _create(folder, args)
            net = stack.enter_context(Namespaces())
            return _rounds(prepared, net, args)
    except NamespacesUnavailable as error:
        raise ConfigError(f"network namespaces cannot be made here: {error}") from None


def _create(folder: Path, args: argparse.Namespace) -> Run:
    flags = ["--rounds", str(args.rounds), "--miners", "3", "--validators", "1"]
    flags += ["--block-seconds", str(args.block_seconds)]
    return open_or_create(demo_options(folder, *flags), lambda line: None)


def _rounds(run: Run, net: Namespaces, args: argparse.Namespace) -> dict[str, Any]:
    specs = [spec for spec in run.specs if spec.role is not Role.OWNER]
    hosts = {spec.name: _host(net, spec, args.rate) for spec in specs}
    announce = net.gateway_of(hosts[HIDDEN]).address if args.announce else None
    processes = {spec.name: _start(run, spec, hosts[spec.name], args.rounds, announce) for spec in specs}
    _until(lambda: all(_events(run, name, "ready") for name in processes), READY_S, processes)
    start_clock(run.paths.chain)
    timing = run.manifest.timing
    limit = (timing.first_block + args.rounds * timing.length) * args.block_seconds + 60
    dialled = _dial_all(net, hosts, specs)
    _until(lambda: all(p.poll() is not None for p in processes.values()), limit, {})
    rows = [_row(run, index, processes) for index in range(args.rounds)]
    totals = {
        "dialled_directly": dialled,
        "card": _card(run),
        "exit_codes": {name: process.poll() for name, process in processes.items()},
        "faults": [e["detail"] for name in processes for e in _events(run, name, "fault")],
    }
    failures = _failures(rows, totals, args.announce)
    return {"name": "nat", "rows": rows, "failures": failures, "totals": totals}


def _host(net: Namespaces, spec: NodeSpec, rate: int | None) -> Host:
    make = net.behind_nat if spec.name == HIDDEN else net.host
    return make(spec.name.replace("-", ""), egress=rate, ingress=rate)


def _start(run: Run, spec: NodeSpec, host: Host, rounds: int, announce: str | None) -> subprocess.Popen[Any]:
    command = node_command(spec, run.paths, run.specs, rounds)
    if spec.name == HIDDEN and announce is not None:
        command += ["--axon.ip", "0.0.0.0", "--axon.external_ip", announce]
    elif spec.name == HIDDEN:
        at = command.index("--axon.port")
        command[at : at + 2] = ["--axon.outbound_only"]
    else:
        command += ["--axon.ip", host.address]
    log = run.paths.node(spec.name) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}
        return host.popen(command, stdout=output, stderr=output, cwd=REPOSITORY, env=environment)


def _dial_all(net: Namespaces, hosts: Mapping[str, Host], specs: Sequence[NodeSpec]) -> dict[str, bool]:
    """Which nodes accept a TCP connection from the validator's host, at their port, by every address there is."""
    hidden, dialler = hosts[HIDDEN], hosts["validator-0"]
    found: dict[str, bool] = {}
    for spec in specs:
        host = hosts[spec.name]
        addresses = [host.address, net.gateway_of(hidden).address] if host is hidden else [host.address]
        found |= {f"{spec.name} at {a}": _dials(dialler, a, spec.port) for a in addresses}
    return found


def _dials(host: Host, address: str, port: int) -> bool:
    try:
        host.run([sys.executable, "-c", DIAL, address, str(port)], 10)
    except subprocess.CalledProcessError:
        return False
    return True


def _row(run: Run, index: int, names: Mapping[str, object]) -> dict[str, Any]:
    uid = next(spec.uid for spec in run.specs if spec.name == HIDDEN)
    told = [e for name in names for e in _events(run, name, "round") if e["round"] == index]
    audits = {e["target"]: e for e in _events(run, "validator-0", "audit") if e["round"] == index}
    last = told[-1] if told else {}
    audit = audits.pop(uid, {})
    return {
        "round": index,
        "applied": bool(last.get("applied")),
        "included": uid in (last.get("included") or ()),
        "credit": (last.get("credit") or {}).get(str(uid)),
        "reducers": last.get("reducers"),
        "verdict": audit.get("verdict"),
        "probe": audit.get("goodput_bytes_per_s"),
        "duty": audit.get("duty"),
        "others": min((e["goodput_bytes_per_s"] or 0.0 for e in audits.values()), default=None),
        "nodes": len(told),
        "identical": len({e["state_root"] for e in told}) == 1,
    }


def _card(run: Run) -> dict[str, Any] | None:
    """The newest score card of the miner behind NAT."""
    uid = next(spec.uid for spec in run.specs if spec.name == HIDDEN)
    scores = _events(run, "validator-0", "scores")
    return scores[-1]["cards"].get(str(uid)) if scores else None


def _failures(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], announce: bool) -> list[str]:
    found = [f"{who} accepted a connection" for who, ok in totals["dialled_directly"].items() if ok and HIDDEN in who]
    found += [
        f"{who} cannot be dialled" for who, ok in totals["dialled_directly"].items() if not ok and HIDDEN not in who
    ]
    found += [f"{name} ended with exit code {code}" for name, code in totals["exit_codes"].items() if code != 0]
    for row in rows:
        wrong = [what for what in ("applied", "included", "identical") if not row[what]]
        wrong += [] if row["nodes"] == 4 else ["settled by all"]
        found += [f"round {row['round']}: not {what}" for what in wrong]
    if announce:
        told = any("--axon.outbound_only" in fault for fault in totals["faults"])
        return found if told else [*found, f"{HIDDEN} did not notice that its port is shut"]
    for row in rows[:-1]:  # nobody is left to answer the audits of the last round
        if not row["probe"] or row["duty"] != 0.8:
            found.append(f"round {row['round']}: probe {row['probe']}, duty {row['duty']}")
    return found


def _events(run: Run, name: str, kind: str) -> list[dict[str, Any]]:
    path = run.paths.node(name) / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        event for event in map(json.loads, (line for line in lines if line.endswith("}"))) if event["event"] == kind
    ]


def _until(done: Any, limit_s: float, watched: Mapping[str, subprocess.Popen[Any]]) -> None:
    until = time.monotonic() + limit_s
    while not done():
        ended = [f"{name} ended with {p.returncode}" for name, p in watched.items() if p.poll() is not None]
        if ended or time.monotonic() > until:
            raise ConfigError(", ".join(ended) or f"not done within {limit_s:.0f} s")
        time.sleep(0.2)
