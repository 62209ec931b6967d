"""The churn benchmark: real processes, and in every round a random node is killed or a fresh one added.

Everything comes from the demo (distributed_training/localnet): processes, chain, kills, outside watcher, offline check.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.churn_rows import result
from benchmarks.small_demo import demo_options, run_folder
from distributed_training.localnet.demo import (
    Watch,
    make_watch,
    train,
)
from distributed_training.localnet.events import RunEvents
from distributed_training.localnet.judge import offline
from distributed_training.localnet.layout import NodeSpec
from distributed_training.localnet.options import Options
from distributed_training.localnet.run.create import Run, open_or_create
from distributed_training.localnet.run.kills import FIRST_ROUND, PHASES, RECOVERY_ROUNDS, Kill
from distributed_training.localnet.run.newcomers import Newcomer, Newcomers, Together
from distributed_training.localnet.run.ports import check_ports
from distributed_training.localnet.run.processes import NodeProcesses, node_command
from distributed_training.localnet.run.stop import Interrupted, StopRequest, stop_on_signals
from distributed_training.localnet.show.display import Display
from distributed_training.protocol.types import Role
from distributed_training.settings.arguments import new_folder, whole

DESCRIPTION = """\
Real processes over loopback: miners, two validators and the owner on a local chain, with a smaller model and shorter
rounds than the demo. In every round but the first a node drawn by the seed is killed (kill -9 at a phase drawn too,
started again 10 s later) or a miner with a fresh key is registered and joins; two calm rounds follow. Judged by the
watcher process with its own clock and by the offline check. One row per round:

  fault        what was done                       applied      or cleanly discarded (then reason says why)
  live, late   nodes that lived all the time; that had not settled by s+L plus 10 s
  identical    one root on all nodes that settled  included     miners in the average
  lost         share of the tokens that all registered miners owed this round and nobody was credited for
"""
ADD_SHARE = 0.15  # of the rounds, while there is room
OFFLINE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Added:
    """A miner that is registered when `round` begins."""

    name: str
    round: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=whole(3, 1000, "rounds"), default=30, metavar="N", help="rounds; default 30, about 14 minutes")
    add("--miners", type=int, default=5, metavar="N", help="miners at the start; default 5")
    add("--add", type=whole(0, 64, "miners"), default=2, metavar="N", help="miners added at most; default 2")
    add("--seed", type=int, default=1, metavar="N", help="draws nodes, phases and order; default 1")
    add("--block-seconds", type=float, default=0.5, metavar="S", help="length of a block; default 0.5: rounds of 27 s")
    add("--run-dir", type=new_folder, metavar="DIR", help="kept; default: a temporary one that is removed")
    add("--port-base", type=int, default=9500, metavar="N", help="first port; default 9500")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """{"name", "rows", "failures", "totals"}. Raises ConfigError."""
    try:
        with run_folder(args.run_dir) as folder:
            return churn(args, folder)
    except Interrupted:
        raise KeyboardInterrupt from None


def churn(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    options = churn_options(args, folder)
    display = Display(plain=True)
    with stop_on_signals() as stop, NodeProcesses() as processes:
        prepared = open_or_create(options, display.say)
        kills, added = plan(prepared.specs, args.rounds, args.add, args.seed)
        prepared = replace(prepared, kills=kills)
        extra = [spec_of(prepared, item, place) for place, item in enumerate(added)]
        check_ports({spec.port: spec.name for spec in (*prepared.specs, *extra)})
        stop.orderly = True
        events = RunEvents(prepared.paths, prepared.specs)
        try:
            watch = churning(prepared, options, added, extra, processes, events, display, stop)
            train(watch)
            check_offline(prepared, processes)
            found = result(prepared, events, {item.name: item.round for item in added}, args.rounds)
            display.say(json.dumps(found["totals"]))
            return found
        finally:
            events.close()


def churn_options(args: argparse.Namespace, folder: Path) -> Options:
    flags = ["--rounds", str(args.rounds), "--miners", str(args.miners), "--seed", str(args.seed)]
    flags += ["--port-base", str(args.port_base), "--block-seconds", str(args.block_seconds)]
    return demo_options(folder, *flags)


def plan(
    specs: Sequence[NodeSpec], rounds: int, most_added: int, seed: int
) -> tuple[tuple[Kill, ...], tuple[Added, ...]]:
    """One fault in each of rounds 1 to `rounds` - 1. Nobody is killed again before it had time to recover, no two
    validators within that time, and nobody just added. Pure: follows from its arguments."""
    rng = random.Random(seed)
    roles = {spec.name: spec.role.name.lower() for spec in specs}
    last = dict.fromkeys(roles, -RECOVERY_ROUNDS - 1)
    kills: list[Kill] = []
    added: list[Added] = []
    for index in range(FIRST_ROUND, rounds):
        if len(added) < most_added and rng.random() < ADD_SHARE:
            name = f"extra-{len(added)}"
            added.append(Added(name, index))
            roles[name], last[name] = "miner", index
            continue
        rested = {name for name in roles if index - last[name] > RECOVERY_ROUNDS}
        busy = any(roles[name] == "validator" and name not in rested for name in roles)
        able = sorted(name for name in rested if not (busy and roles[name] == "validator"))
        name = rng.choice(able)
        last[name] = index
        kills.append(Kill(name, roles[name], rng.choice(PHASES[roles[name]]), index))
    return tuple(kills), tuple(added)


def spec_of(run: Run, item: Added, place: int) -> NodeSpec:
    """The uid is the next free one: registrations follow one another."""
    last, miner = run.specs[-1], next(s for s in run.specs if s.role is Role.MINER)
    return replace(miner, name=item.name, uid=last.uid + 1 + place, port=last.port + 1 + place)


def churning(
    prepared: Run, options: Options, added: Sequence[Added], extra: Sequence[NodeSpec], processes: NodeProcesses,
    events: RunEvents, display: Display, stop: StopRequest,
) -> Watch:  # fmt: skip
    """Two calm rounds at the end: who was killed last finds somebody to come back to."""
    watch = make_watch(prepared, options.rounds + RECOVERY_ROUNDS, processes, events, display, stop)
    waiting = [Newcomer(spec, item.round) for spec, item in zip(extra, added, strict=True)]

    def command(spec: NodeSpec) -> list[str]:
        return node_command(spec, prepared.paths, prepared.specs, watch.rounds)

    newcomers = Newcomers(waiting, prepared.paths, processes, events, watch.starts, command, display.say)
    return replace(watch, killer=Together(watch.killer, newcomers))


def check_offline(run: Run, processes: NodeProcesses) -> None:
    command = [sys.executable, "-m", offline.__name__, str(run.paths.root)]
    processes.start("offline check", command, run.paths.root / "offline.txt")
    until = time.monotonic() + OFFLINE_TIMEOUT_S
    while "offline check" in processes.running() and time.monotonic() < until:
        time.sleep(0.2)
    processes.stop()
