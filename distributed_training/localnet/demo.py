"""The demo as a story: create, start, wait, watch, stop, compare, check, report."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.local.genesis import start_clock, stop_clock
from distributed_training.commands import quoted
from distributed_training.errors import ChainFault, ConfigError, LocalFault
from distributed_training.localnet.events import DEMO, RunEvents, RunView
from distributed_training.localnet.finish import finish, stored_result
from distributed_training.localnet.judge import watcher
from distributed_training.localnet.judge.chain_view import (
    Shares,
    genesis_time,
    newest_block,
    shares_at,
    with_chain,
)
from distributed_training.localnet.layout import NEWCOMER, NodeSpec
from distributed_training.localnet.names import many
from distributed_training.localnet.options import Options
from distributed_training.localnet.run.comparison import Comparison
from distributed_training.localnet.run.create import Run, open_or_create
from distributed_training.localnet.run.faults import Killer, Start, restarted
from distributed_training.localnet.run.hub import DemoHub, start_hub
from distributed_training.localnet.run.newcomers import Disturber, Newcomer, Newcomers, Together
from distributed_training.localnet.run.page import Page
from distributed_training.localnet.run.processes import NodeProcesses, joining_command, node_command
from distributed_training.localnet.run.room import check_left, full
from distributed_training.localnet.run.stop import POLL_S, Interrupted, StopRequest, stop_on_signals
from distributed_training.localnet.show.display import Display
from distributed_training.locks import Lock
from distributed_training.protocol.rules.clock import over, round_at
from distributed_training.protocol.types import Role
from distributed_training.recipes.reading import read_preset

READY_TIMEOUT_S = 300.0
END_GRACE_S = 60.0  # after the last round's end: audits, weights, a clean shutdown
WATCHER = "watcher"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Watch:
    """What the loops of the demo look at."""

    run: Run
    rounds: int  # rounds of the run when the nodes stop: the last index is one less
    processes: NodeProcesses
    events: RunEvents
    display: Display
    stop: StopRequest
    killer: Disturber
    starts: dict[str, Start]
    command: Callable[[NodeSpec], list[str]]  # how a node is started
    comparison: Comparison | None = None  # what trains beside the rounds


def run_demo(options: Options, lock: Lock) -> int:
    """The exit code. `lock` is of the run directory. Raises ConfigError before anything was started."""
    display = Display(plain=options.plain)
    with stop_on_signals() as stop:
        try:
            run = open_or_create(options, display.say)
            stop.orderly = True
            with Page(run.paths, display.say, stop) if options.open else nullcontext() as page:
                if page is not None:
                    page.open()
                code = _whole(run, options, display, stop, lock)
                if page is not None:
                    page.stay()
                return code
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise LocalFault(full(options.run_dir)) from None
        except Interrupted:
            display.say(f"stopped; the same command with --run-dir {quoted(options.run_dir)} goes on from here")
            return INTERRUPTED


def _whole(run: Run, options: Options, display: Display, stop: StopRequest, lock: Lock) -> int:
    """What is left to do of the run, and its end."""
    result = stored_result(run, options.rounds)
    if result is None:
        return _run(run, options, display, stop, lock)
    done = many(result["rounds_wanted"], "round")
    display.say(
        f"{run.paths.root} has its {done} and this is its summary; the same command with a larger --rounds goes on"
    )
    return display.result(result, run.paths)


def _run(run: Run, options: Options, display: Display, stop: StopRequest, lock: Lock) -> int:
    with ExitStack() as stack:
        hub = None
        if options.hub:
            display.say("starting a Hub and uploading the pages to it")
            hub = start_hub(run.paths, stack.enter_context(NodeProcesses()), stop.check)
        environment = None if hub is None else {**os.environ, **hub.environment}
        helpers = stack.enter_context(NodeProcesses(environment, lock=lock))
        processes = stack.enter_context(NodeProcesses(environment, lock=lock))
        events = RunEvents(run.paths, run.specs)
        stack.callback(events.close)
        events.drain()
        comparison = Comparison(run, events.view, helpers)
        if len(events.view.applied()) < options.rounds:  # else only the comparison was not finished
            rounds = rounds_to_run(run, options.rounds, events.view)
            watch = replace(make_watch(run, rounds, processes, events, display, stop, hub), comparison=comparison)
            train(with_newcomer(watch, options, hub) if options.hub or options.newcomer else watch)
        summary = finish(run, options, events, comparison, helpers, display, stop.check, hub)
        return display.result(summary, run.paths)


def make_watch(
    run: Run,
    rounds: int,
    processes: NodeProcesses,
    events: RunEvents,
    display: Display,
    stop: StopRequest,
    hub: DemoHub | None = None,
) -> Watch:
    """With a killer for the planned kills that no earlier part of the run carried out."""

    def note(event: dict[str, Any]) -> None:
        told = {"time": time.time(), **event}
        events.note(told)
        display.event(DEMO, told)

    kills = list(run.kills)
    for done in (e for e in events.notes if e["event"] == "killed"):
        kills.remove(next(k for k in kills if (k.name, k.phase) == (done["name"], done["phase"])))

    def command(spec: NodeSpec) -> list[str]:
        return node_command(spec, run.paths, run.specs, rounds) + ([] if hub is None else hub.flags(spec))

    starts = {spec.name: Start(command(spec), run.paths.node(spec.name) / "log.txt") for spec in run.specs}
    killer = Killer(kills, processes, starts, note, lambda: display.block)
    return Watch(run, rounds, processes, events, display, stop, killer, starts, command)


def with_newcomer(watch: Watch, options: Options, hub: DemoHub | None) -> Watch:
    """A node with a fresh hotkey comes in the middle and finds the run by itself: a miner, or with a Hub a validator,
    which weighs nothing, so that the run's end stays the same."""
    run, role = watch.run, Role.MINER if hub is None else Role.VALIDATOR
    last, like = run.specs[-1], next(s for s in run.specs if s.role is role)
    steps = options.steps_at_speed_1 if role is Role.MINER else None
    spec = replace(like, name=NEWCOMER, uid=last.uid + 1, port=last.port + 1, steps=steps, exact_steps=False)
    waiting = [Newcomer(spec, 1 if hub is None else max(2, options.rounds // 2))]

    def command(spec: NodeSpec) -> list[str]:
        told = joining_command(spec, run.paths, watch.rounds, run.manifest.netuid)
        return told if hub is None else [*told, *hub.flags(spec)]

    home = run.paths.node(NEWCOMER)
    if home.is_symlink():  # an earlier part of the run had it already
        waiting = []
        watch.events.add(spec)
        watch.starts[NEWCOMER] = Start(command(spec), home / "log.txt")
    else:
        there = run.paths.joined / home.relative_to(run.paths.root)
        there.mkdir(parents=True, exist_ok=True)
        home.symlink_to(there)
    newcomers = Newcomers(waiting, run.paths, watch.processes, watch.events, watch.starts, command, watch.display.say)
    return replace(watch, killer=Together(watch.killer, newcomers))


def rounds_to_run(run: Run, wanted: int, view: RunView) -> int:
    """Rounds of the run when the nodes stop. A resumed chain stands where it was stopped until they are loaded, in the
    middle of a round that may come to nothing."""
    if not run.resumed:
        return wanted
    stop_clock(run.paths.chain)
    under_way = round_at(run.manifest.timing, with_chain(run.paths, run.manifest, newest_block))
    first = 0 if under_way is None else under_way + 1
    return first + max(0, wanted - len(view.applied()))


def train(watch: Watch) -> None:
    """All nodes from start to end; whatever happens, none is left."""
    watch.display.start(watch.run, watch.events.view, watch.rounds)
    try:
        start_nodes(watch)
        wait_ready(watch)
        if watch.comparison is not None:
            watch.comparison.start()
        follow(watch)
    except (Interrupted, LocalFault):
        if watch.comparison is not None:
            watch.comparison.give_up()
        raise
    finally:
        watch.display.end_live()
        watch.processes.stop()
        watch.events.drain()


def start_nodes(watch: Watch) -> None:
    """And the outside watcher, which counts as none of them."""
    root = watch.run.paths.root
    for name, start in watch.starts.items():
        node = watch.events.view.nodes[name]
        was_killed, node.exit_code, node.killed, node.stopped = node.killed, None, False, False
        watch.processes.start(name, start.command, start.log)
        if was_killed:  # the run was stopped before its restart was due
            again = restarted(name, watch.processes.last_pid(name), watch.display.block, ())
            watch.events.note({"time": time.time(), **again})
    watch.processes.start(WATCHER, [sys.executable, "-m", watcher.__name__, str(root)], root / "watcher.txt")


def wait_ready(watch: Watch) -> None:
    """Until every node that lives is ready; then the clock goes. Raises ConfigError when too few are left."""
    nodes = [watch.events.view.nodes[name] for name in watch.starts]
    started, ready_before = time.time(), time.monotonic() + READY_TIMEOUT_S
    while True:
        tick(watch)
        codes = watch.processes.exit_codes()
        ready = [n for n in nodes if n.ready is not None and n.ready["time"] >= started - 1]
        waiting = [n for n in nodes if n not in ready and codes[n.name] is None]
        if not waiting:
            break
        if time.monotonic() > ready_before:
            names = ", ".join(n.name for n in waiting)
            raise ConfigError(
                f"{names} not ready after {READY_TIMEOUT_S:.0f} s; see nodes/NAME/log.txt in the run directory"
            )
        watch.stop.sleep(POLL_S)
    enough(watch, [n.role for n in ready])
    watch.display.clock_started(start_clock(watch.run.paths.chain))  # one that runs already is left alone


def enough(watch: Watch, roles: list[str]) -> None:
    if roles.count("miner") < 2 or roles.count("validator") < 1:
        raise ConfigError(
            f"only {len(roles)} of {len(watch.run.specs)} nodes started; expected at least 2 miners and 1 validator "
            f"(logs: {watch.run.paths.root}/nodes/NAME/log.txt)"
        )


def follow(watch: Watch) -> None:
    """Until every node ended, or the last round is over for a while."""
    last = over(watch.run.manifest.timing, watch.rounds - 1)
    end = (genesis_time(watch.run.paths) or time.time()) + last * watch.run.block_s
    tempo, epoch, until = read_preset("local").tempo, 0, float("inf")
    while (watch.killer.busy or set(watch.processes.running()) - {WATCHER}) and time.monotonic() < until:
        tick(watch)
        if watch.comparison is not None:
            watch.comparison.tick()
        if time.time() > end and until == float("inf"):  # a machine that slept beyond it gets the grace all the same
            until = time.monotonic() + END_GRACE_S
        final = (watch.display.block or 0) - watch.run.manifest.timing.finality - 1
        if final // tempo > epoch:
            epoch = final // tempo
            read_incentive(watch)
        watch.stop.sleep(POLL_S)
    tick(watch)


def read_incentive(watch: Watch) -> None:
    """For the live table only: a chain that is busy is asked again after the next epoch."""

    async def newest(chain: BittensorChain) -> Shares:
        return await shares_at(chain, (await chain.head()).finalized)

    try:
        watch.events.view.incentive = with_chain(watch.run.paths, watch.run.manifest, newest).incentive
    except ChainFault:
        pass


def tick(watch: Watch) -> None:
    """Everything new: events into view and file, processes that ended, the table."""
    watch.stop.check()
    check_left(watch.run.paths.root)
    for name, event in watch.events.poll():
        watch.display.event(name, event)
        watch.killer.saw(name, event)
    watch.killer.tick()
    for ended in watch.processes.newly_ended():
        node = watch.events.view.nodes.get(ended.name)
        if node is None:  # the watcher
            watch.display.ended(ended)
            continue
        node.exit_code = ended.code
        watch.events.note(
            {"time": time.time(), "event": "ended", "round": None, "name": ended.name, "code": ended.code}
        )
        watch.display.ended(ended)
    watch.display.update()
