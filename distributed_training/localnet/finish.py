"""After the last round, outside the round clock: offline check, the rest of the comparison, summary, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import uplink_bytes
from distributed_training.errors import ChainFault
from distributed_training.localnet.events import RunEvents, RunView
from distributed_training.localnet.judge import offline, published, watcher
from distributed_training.localnet.judge.fault_summary import fault_rows, watch_rows
from distributed_training.localnet.judge.summary import (
    ChainFacts,
    build_summary,
    read_chain,
    rounds_seen,
    write_summary,
)
from distributed_training.localnet.layout import NEWCOMER, REPOSITORY
from distributed_training.localnet.options import Options
from distributed_training.localnet.run.comparison import Comparison, read_json
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.run.hub import CHECKPOINTS, DemoHub
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.localnet.show.display import Display
from distributed_training.localnet.show.report import write_report
from distributed_training.training.model import model_size

HELPERS_TIMEOUT_S = 1800.0
POLL_S = 0.5
VERIFY = "verify checkpoint"


def stored_result(run: Run, rounds_wanted: int) -> dict[str, Any] | None:
    """The summary of a run that has all the rounds asked for; None if there is more to do."""
    try:
        summary = json.loads(run.paths.summary.read_text())
        enough = summary["rounds_wanted"] >= rounds_wanted and summary["checks"]["rounds_applied"]
        enough = enough and isinstance(summary["joined"], dict)  # else one of a former version
    except (OSError, ValueError, KeyError):
        return None
    return summary if enough else None


def finish(
    run: Run,
    options: Options,
    events: RunEvents,
    comparison: Comparison,
    processes: NodeProcesses,
    display: Display,
    check_stop: Callable[[], None],
    hub: DemoHub | None = None,
) -> dict[str, Any]:
    """Runs the helpers, writes summary.json and report.png, returns the summary."""
    view = events.view
    rounds = rounds_seen(view)
    try:
        chain = read_chain(run, rounds)
    except ChainFault as error:
        display.say(f"the chain cannot be read: {error}")
        chain = ChainFacts({}, {})
    run_helpers(run, view, chain, comparison, processes, display, check_stop, hub)
    display.say("writing the summary and the picture")
    num_params = model_size(run.manifest.model.config)
    summary = build_summary(
        run,
        view,
        chain,
        rounds_wanted=options.rounds,
        num_params=num_params,
        wire_bytes=uplink_bytes(run.manifest, layout_of(run.manifest, num_params)),
        baselines=comparison.result(),
        offline=read_json(run.paths.root / offline.RESULT) if rounds else None,
        faults=fault_rows(run, view, events.notes, max(rounds, default=-1)),
        watch=watch_rows(read_json(run.paths.root / watcher.RESULT), rounds),
        joined=joined_facts(run, view),
        hub=None if hub is None else hub_facts(run, view, hub, processes.exit_codes().get(VERIFY)),
    )
    write_summary(run.paths.summary, summary)
    write_report(run.paths.report, summary)
    return summary


def run_helpers(
    run: Run,
    view: RunView,
    chain: ChainFacts,
    comparison: Comparison,
    processes: NodeProcesses,
    display: Display,
    check_stop: Callable[[], None],
    hub: DemoHub | None,
) -> None:
    """The offline check, what is left of the comparison, and a look at what was published, side by side."""
    for result in (offline.RESULT, published.RESULT):  # of an earlier part of a resumed run
        (run.paths.root / result).unlink(missing_ok=True)
    comparison.finish(chain)
    python = [sys.executable, "-m"]
    command = [*python, offline.__name__, str(run.paths.root), "--rounds", str(1 + max(rounds_seen(view), default=0))]
    processes.start("offline check", command, run.paths.root / "offline.txt")
    if hub is not None and (commit := newest_commit(view)) is not None:
        command = [*python, published.__name__, str(run.paths.root), CHECKPOINTS, commit]
        processes.start("published model", command, run.paths.root / "published.txt")
        verify = [sys.executable, str(REPOSITORY / "scripts" / "verify_checkpoint.py"), CHECKPOINTS]
        verify += ["--revision", commit, "--run-dir", str(run.paths.root), "--cache", str(run.paths.root / "verified")]
        processes.start(VERIFY, verify, run.paths.root / "verified.txt")
    wait(processes, comparison, display, check_stop)


def newest_commit(view: RunView) -> str | None:
    """Of the latest state that the owner published; its address ends with it."""
    events = [event for node in view.of_role("owner") for event in node.checkpoints]
    newest = max(events, key=lambda event: event["round"], default=None)
    return None if newest is None else str(newest["path"]).rpartition("/")[2]


def joined_facts(run: Run, view: RunView) -> dict[str, dict[str, Any]]:
    """By name, how each node fared that joined while the run went on: the newcomer, and those that a person started."""
    own = {spec.name for spec in run.specs}
    found: dict[str, dict[str, Any]] = {}
    for node in (n for n in view.nodes.values() if n.name not in own and n.readies):
        included = {
            index for other in view.nodes.values() for index, e in other.rounds.items() if node.uid in e["included"]
        }
        found[node.name] = {
            "role": node.role,
            "uid": node.uid,
            "hotkey": node.readies[0].get("hotkey"),
            "by_demo": node.name == NEWCOMER,
            "source": node.readies[0].get("source"),
            "start_round": node.first_round,
            "rounds": sorted(node.rounds),
            "included": sorted(included),
            "exit_code": node.exit_code,
        }
    return found


def hub_facts(run: Run, view: RunView, hub: DemoHub, verify_code: int | None) -> dict[str, Any]:
    """What the summary says of a run with --hub; None where nothing was measured."""
    stats = hub.stats() or {}
    return {
        "pages": hub.pages,
        "checkpoints": hub.checkpoints,
        "verify_exit_code": verify_code,
        "published": read_json(run.paths.root / published.RESULT),
        "miner_copies": [
            {key: event.get(key) for key in ("round", "target", "ok", "said")}
            for validator in view.of_role("validator")
            for event in validator.shared
        ],
        "page_requests": stats.get("status.206"),
        "bytes_served": stats.get("bytes"),
    }


def wait(processes: NodeProcesses, comparison: Comparison, display: Display, check_stop: Callable[[], None]) -> None:
    """Until all helpers ended, with progress; whatever takes too long is ended and not measured."""
    until = time.monotonic() + HELPERS_TIMEOUT_S
    _, total = comparison.progress()
    with display.progress("checking offline, and training alone for comparison", total) as advance:
        while processes.running() and time.monotonic() < until:
            check_stop()
            for ended in processes.newly_ended():
                display.ended(ended)
            advance(comparison.progress()[0])
            time.sleep(POLL_S)
    processes.stop()
    for ended in processes.newly_ended():
        display.ended(ended)
