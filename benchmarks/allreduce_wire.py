"""The all-reduce over lines with a rate and a delay, in network namespaces: how far from the wire's limit it is."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.allreduce_run import ROOT, Group, Place, end, hear, make_manifest, took
from benchmarks.namespaces import Host, Namespaces, NamespacesUnavailable
from benchmarks.table import show
from distributed_training.errors import ConfigError

MOST_RATIO, MOST_SLOWED = 1.15, 1.10
PORT, INNER_PORT, TCP_PORT, TCP_INNER = 9000, 9001, 9100, 9101
LIMITS = 40  # so many times the wire's limit may a round take, and a minute
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--netns", action="store_true", help="every peer in a network namespace of its own (needs root, iproute2)")
    add("--rate", type=_rate, default=_rate("100mbit"), metavar="R", help="of each line, both ways; default 100mbit")
    add("--rtt", type=_ms, default=0.05, metavar="T", help="round trip between two peers; default 50ms")
    add("--observers", type=int, default=2, metavar="N", help="who only fetch: a validator, an owner; default 2")
    add("--loss", type=_percent, default=0.0, metavar="P", help="of the packets, as 1%%; default none")
    add("--slow", type=_rate, metavar="R", help="after the first rounds, the last peer's line has this rate")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row for what ran: ours, the bare exchange, plain TCP. Raises ConfigError where there are no namespaces."""
    names = [f"miner{i}" for i in range(args.peers)] + [f"observer{i}" for i in range(args.observers)]
    try:
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="dt-wire-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            net = stack.enter_context(Namespaces())
            hosts = {name: net.host(name, egress=args.rate, ingress=args.rate) for name in names}
            for host in hosts.values():
                if args.loss:
                    host.lose(args.loss)
                for port, inner in ((PORT, INNER_PORT), (TCP_PORT, TCP_INNER)):
                    stack.callback(end, _forward(host, port, inner, args.rtt / 2))
            return _measure(hosts, folder, args)
    except NamespacesUnavailable as error:
        raise ConfigError(f"allreduce --netns needs network namespaces: {error}") from None


def _measure(hosts: Mapping[str, Host], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    manifest = make_manifest(args.params, args.uplink, args.output)
    places = {name: Place(host.address, PORT, "127.0.0.1", INNER_PORT, host.netns) for name, host in hosts.items()}
    (folder / "nodes").mkdir()
    with Group(folder / "nodes", manifest, args.params, places) as group:
        limit_s = wire_limit_s(group.up_bytes, group.down_bytes, args.peers, args.observers, args.rate)
        patience_s = 60 + LIMITS * limit_s * (args.rate / args.slow if args.slow else 1)
        rounds = []
        for number in range(args.rounds):
            rounds.append(group.tell("round", patience_s))
            _say(f"round {number}: {exchange_s(rounds[-1]):.2f} s, the wire's limit {limit_s:.2f} s")
        bare = group.tell("bare", patience_s)
        _say(f"the bare exchange: {took([*bare.values()]):.2f} s")
        slowed = _slowed(group, hosts, args, patience_s) if args.slow else None
    tcp_s = _tcp(hosts, group, args, patience_s)
    return _result(args, rounds, took([*bare.values()]), tcp_s, limit_s, slowed)


def _result(
    args: argparse.Namespace, rounds: list[Any], bare_s: float, tcp_s: float, limit_s: float, slowed: Any
) -> dict[str, Any]:
    best = min(rounds[1:] or rounds, key=exchange_s)
    ours_s = exchange_s(best)
    identical = all(len({node["root"] for node in told.values()}) == 1 for told in rounds)
    row = {
        "ours_s": ours_s, "limit_s": limit_s, "wire_ratio": ours_s / limit_s, "bare_ratio": bare_s / limit_s,
        "tcp_ratio": tcp_s / limit_s, "next_state_s": next_state_s(best), "identical": identical,
        "loss": args.loss, "congestion": congestion(),
    }  # fmt: skip
    if slowed is not None:
        before, after = fast_s(best), fast_s(slowed)
        row |= {f"slow_{name}": after[name] / before[name] for name in before}
    show(timeline(best), title="a node's exchange in the best round, seconds after all had committed")
    failures = [] if identical else ["the state roots differ"]
    missed = _missed(row, args)
    for line in missed:
        print(line)
    failures += [line for line in missed if args.strict]
    return {"name": "allreduce --netns", "rows": [row], "failures": failures, "timeline": timeline(best)}


def _missed(row: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    found = []
    if not args.loss and row["wire_ratio"] > MOST_RATIO:
        found.append(f"MISSED: {row['wire_ratio']:.2f} of the wire's limit, at most {MOST_RATIO}")
    if args.loss and row["wire_ratio"] > MOST_RATIO * max(1.0, row["tcp_ratio"]):
        found.append(f"MISSED: {row['wire_ratio']:.2f} of the limit, plain TCP {row['tcp_ratio']:.2f}")
    found += [f"MISSED: {name}: {value:.2f} times as long beside a slow peer, at most {MOST_SLOWED}"
              for name, value in row.items() if name.startswith("slow_") and value > MOST_SLOWED]  # fmt: skip
    return found


def wire_limit_s(up: int, down: int, miners: int, observers: int, rate: float) -> float:
    """Bytes that must leave or enter the most loaded peer, at its rate. up, down: of one encoded vector, as it is sent
    and as it is published; each miner reduces as much."""
    share = (miners - 1) / miners
    leaves = share * up + (miners - 1 + observers) / miners * down
    enters = max(share * (up + down), down if observers else 0)
    return max(leaves, enters) / rate


def exchange_s(told: Mapping[str, Any]) -> float:
    """From when the last had committed until the last has all slices."""
    marks = [node["marks"] for node in told.values()]
    return max(m["gathered"][0] for m in marks) - started(told)


def started(told: Mapping[str, Any]) -> float:
    return max(node["marks"]["committed"][0] for name, node in told.items() if name.startswith("miner"))


def next_state_s(told: Mapping[str, Any]) -> float:
    return max(node["marks"]["settled"][0] for node in told.values()) - started(told)


def timeline(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """When each node's chunks were taken by all, its own slice was reduced, and all slices were here."""
    began = started(told)
    return [
        {
            "node": name,
            "first sent": min(node["sent_at"].values(), default=began) - began,
            "all sent": max(node["sent_at"].values(), default=began) - began,
            "reduced": node["marks"]["reduced"][0] - began if "reduced" in node["marks"] else None,
            "first fetched": min(node["here_at"].values(), default=began) - began,
            "gathered": node["marks"]["gathered"][0] - began,
        }
        for name, node in told.items()
    ]


def fast_s(told: Mapping[str, Any]) -> dict[str, float]:
    """What the peers but the last miner need among themselves: until each has taken from each, and from when the last
    of their outputs is there until they have them all."""
    miners = [name for name in told if name.startswith("miner")]
    slow = str(len(miners) - 1)
    fast = {name: node for name, node in told.items() if name != f"miner{slow}"}
    sent = [at for node in fast.values() for uid, at in node["sent_at"].items() if uid != slow]
    made = max(node["marks"]["reduced"][0] for name, node in fast.items() if name in miners)
    here = [at for node in fast.values() for uid, at in node["here_at"].items() if uid != slow]
    return {"scatter": max(sent) - started(told), "gather": max(here) - made}


def _slowed(group: Group, hosts: Mapping[str, Host], args: argparse.Namespace, patience_s: float) -> Any:
    hosts[f"miner{args.peers - 1}"].shape(args.slow)
    told = group.tell("round", patience_s)
    _say(f"beside a peer of {8 * args.slow / 1e6:.0f} Mbit/s: {exchange_s(told):.2f} s, its own line included")
    hosts[f"miner{args.peers - 1}"].shape(args.rate)
    return told


def _tcp(hosts: Mapping[str, Host], group: Group, args: argparse.Namespace, patience_s: float) -> float:
    addresses = ",".join(f"{host.address}:{TCP_PORT}" for host in hosts.values())
    parts = [str(group.up_bytes // args.peers), str(group.down_bytes // args.peers)]
    log = group.folder / "tcp.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("w"))
        processes = []
        for number, host in enumerate(hosts.values()):
            argv = [sys.executable, "benchmarks/allreduce_tcp.py", "127.0.0.1", str(TCP_INNER), str(number),
                    str(args.peers), *parts, addresses]  # fmt: skip
            processes.append(host.popen(
                argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
            ))  # fmt: skip
            stack.callback(end, processes[-1])
        for process in processes:
            hear(process, 60, "tcp", log)
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        return took([hear(process, patience_s, "tcp", log) for process in processes])


def _forward(host: Host, port: int, inner: int, delay_s: float) -> subprocess.Popen[Any]:
    argv = [sys.executable, "benchmarks/delay.py", "--listen", f"{host.address}:{port}", "--to", f"127.0.0.1:{inner}",
            "--ms", str(1000 * delay_s)]  # fmt: skip
    return host.popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)


def congestion() -> str:
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return path.read_text().strip() if path.exists() else "unknown"


def _rate(text: str) -> int:
    """100mbit -> bytes a second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", text.lower())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a rate like 100mbit, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2]] / 8)


def _number(text: str, ending: str, example: str) -> float:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?){ending}", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected {example}, not {text!r}")
    return float(match[1])


def _ms(text: str) -> float:
    return _number(text, "ms", "milliseconds like 50ms") / 1000


def _percent(text: str) -> float:
    return _number(text, "%", "a share like 1%") / 100


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
