"""The demo's processes: started, seen to be ready, stopped within ten seconds, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import RunPaths, node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.faults import Killer, Start
from distributed_training.localnet.run.group import alive, bytes_in_flight
from distributed_training.localnet.run.kills import Kill
from distributed_training.localnet.run.ports import check_named
from distributed_training.localnet.run.processes import NodeProcesses, node_command

pytestmark = pytest.mark.alone

FAKE = Path(__file__).parent / "fake_node.py"
NODES = 4  # owner, one validator, two miners
# The demo with every node's script replaced: run_demo itself, its chain and its directory are the real ones.
DEMO = """
import sys
from dataclasses import replace
from pathlib import Path
from distributed_training.settings.entry import run_main
from distributed_training.localnet import layout
from distributed_training.localnet.run import create
real = layout.node_specs
fake = lambda options: tuple(replace(s, script=Path({fake!r})) for s in real(options))
create.node_specs = fake
from distributed_training.localnet.demo import run_demo
from distributed_training.localnet.options import parse_options
options = parse_options(sys.argv[1:])
sys.exit(run_main(lambda: run_demo(options, layout.lock_run(options.run_dir))))
"""


def free_port_base() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 60_000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One parent for all runs of this file: they share its cache of pages."""
    return tmp_path_factory.mktemp("runs")


@contextmanager
def start_demo(
    run_dir: Path, behaviour: dict[str, object], extra: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    flags = ["--miners", "2", "--validators", "1", "--plain", "--port-base", str(free_port_base())]
    flags += ["--block-seconds", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO.format(fake=str(FAKE)), "--run-dir", str(run_dir), *flags, *extra],
        env=os.environ | {"FAKE_NODE": json.dumps(behaviour)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, run_dir
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def helpers(run_dir: Path) -> list[int]:
    return [int(path.read_text()) for path in run_dir.glob("nodes/*/helper.pid") if path.read_text()]


def trained(run_dir: Path) -> int:
    return sum('"phase"' in path.read_text() for path in run_dir.glob("nodes/*/events.jsonl"))


def ready(run_dir: Path) -> int:
    return sum(path.read_text().count('"ready"') for path in run_dir.glob("nodes/*/events.jsonl"))


def left_of(run_dir: Path) -> list[int]:
    """Processes that name the run directory or are helpers of its nodes."""
    named = [p.pid for p in psutil.process_iter(["cmdline"]) if str(run_dir) in " ".join(p.info["cmdline"] or [])]
    return named + [pid for pid in helpers(run_dir) if alive(pid)]


def test_ctrl_c_ends_everything_within_ten_seconds_even_a_node_that_does_not_listen(runs: Path) -> None:
    with start_demo(runs / "deaf", {"ignores_term": ["miner-1"]}) as (process, run_dir):
        wait_for("nodes train", lambda: trained(run_dir) == NODES)
        assert len(helpers(run_dir)) == NODES
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
        assert time.monotonic() - began < 10
        assert process.returncode == 130
        assert f"--run-dir {run_dir} goes on from here" in output
        assert left_of(run_dir) == []


def test_kill_minus_nine_of_the_demo_leaves_no_process(runs: Path) -> None:
    with start_demo(runs / "killed", {}) as (process, run_dir):
        wait_for("nodes train", lambda: trained(run_dir) == NODES)
        process.kill()
        process.wait()
        wait_for("everything is gone", lambda: left_of(run_dir) == [], seconds=10)


def test_a_node_that_dies_is_shown_with_its_log_and_too_few_nodes_are_an_error(runs: Path) -> None:
    with start_demo(runs / "dies", {"dies": ["miner-1"]}) as (process, run_dir):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "miner-1 ended with exit code 3" in output
        assert "    error: no such thing" in output
        assert "error: only 3 of 4 nodes started" in output
        assert left_of(run_dir) == []


def test_a_terminated_run_is_resumed_and_other_options_are_refused(runs: Path) -> None:
    with start_demo(runs / "resumed", {}) as (process, run_dir):
        wait_for("nodes train", lambda: trained(run_dir) == NODES)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
        assert process.returncode == 130
    manifest = (runs / "resumed" / "manifest.json").read_bytes()
    with start_demo(runs / "resumed", {}, ["--seed", "5"]) as (process, _):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "seed 1 there, 5 asked for" in output
    with start_demo(runs / "resumed", {}) as (process, run_dir):
        wait_for("nodes are ready again", lambda: ready(run_dir) == 2 * NODES)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
        assert "(resumed)" in output
    assert (runs / "resumed" / "manifest.json").read_bytes() == manifest


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    options = parse_options(["--run-dir", str(tmp_path / "run"), "--port-base", str(free_port_base())])
    specs = node_specs(options)
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", specs[2].port))
        holder.listen()
        taken = rf"port {specs[2].port}, which validator-1 needs, is in use by process {os.getpid()} \(.*--port-base"
        with pytest.raises(ConfigError, match=taken):
            check_named(options)
    check_named(options)


def test_node_commands_hold_nothing_but_flags_an_operator_could_type(tmp_path: Path) -> None:
    options = parse_options(["--speeds", "1,4", "--steps", "20", "--run-dir", str(tmp_path / "run")])
    specs, paths = node_specs(options), RunPaths(options.run_dir)
    miner = node_command(specs[-1], paths, specs, 6)
    assert miner[1].endswith("neurons/miner.py")
    assert miner[miner.index("--steps-per-round") + 1] == "80" and "--exact-steps" in miner
    assert miner[miner.index("--rounds") + 1] == "6"
    validator = node_command(specs[1], paths, specs, 6)
    assert "--steps-per-round" not in validator and "--exact-steps" not in validator


def test_processes_end_with_their_block(tmp_path: Path) -> None:
    with NodeProcesses() as processes:
        processes.start(
            "sleeper", [sys.executable, "-c", "import time; print('hello'); time.sleep(60)"], tmp_path / "log"
        )
        processes.start("short", [sys.executable, "-c", "import sys; print('bye'); sys.exit(7)"], tmp_path / "short")
        wait_for("short is over", lambda: processes.exit_codes()["short"] is not None, 10)
        ended = processes.newly_ended()
        assert [(e.name, e.code, e.log_tail) for e in ended] == [("short", 7, ("bye",))]
        assert processes.newly_ended() == ()
        assert processes.running() == ("sleeper",)
    assert processes.exit_codes()["sleeper"] == -signal.SIGTERM


# A node with a helper: the first kind dies with its node (the end of its input), the second outlives it.
WITH_HELPER = """
import subprocess, sys, time
code = {"good": "import sys; sys.stdin.read()", "bad": "import time; time.sleep(60)"}[sys.argv[1]]
subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
print("up", flush=True)
time.sleep(60)
"""


def test_a_kill_hits_the_node_alone_finds_what_outlives_it_and_starts_it_again(tmp_path: Path) -> None:
    notes: list[dict[str, Any]] = []
    with NodeProcesses() as processes:
        starts = {n: Start([sys.executable, "-c", WITH_HELPER, n], tmp_path / n) for n in ("good", "bad")}
        for name, start in starts.items():
            processes.start(name, start.command, start.log)
        wait_for("both are up", lambda: all(s.log.exists() and "up" in s.log.read_text() for s in starts.values()), 20)
        kills = [Kill(name, "miner", "average", 2) for name in starts]
        block = lambda: 99  # noqa: E731
        killer = Killer(kills, processes, starts, notes.append, block, survivors_after_s=1.0, restart_after_s=1.5)
        pids = {name: processes.pid(name) for name in starts}
        for event in ({"event": "phase", "phase": "average", "round": 1}, {"event": "step", "round": 2}):
            killer.saw("good", event)
        assert notes == []
        for name in starts:
            killer.saw(name, {"event": "phase", "phase": "average", "round": 2})
        assert killer.busy and processes.running() == () and processes.newly_ended() == ()
        wait_for("both run again", lambda: killer.tick() or not killer.busy, 10)
        assert set(processes.running()) == set(starts)
        killed, again = notes[:2], {e["name"]: e for e in notes[2:]}
        assert [(e["name"], e["pid"], e["block"], e["round"]) for e in killed] == [(n, pids[n], 99, 2) for n in starts]
        assert all(e["event"] == "killed" and len(e["helpers"]) == 1 and e["bytes_in_flight"] == 0 for e in killed)
        assert again["good"]["survivors"] == [] and again["bad"]["survivors"] == killed[1]["helpers"]
        wait_for("the old helper is ended at the restart", lambda: not alive(killed[1]["helpers"][0]), 5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the queues of sockets")
def test_bytes_in_flight_are_those_between_two_programs() -> None:
    reader = subprocess.Popen([sys.executable, "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); "
                               "print(s.getsockname()[1], flush=True); c, _ = s.accept(); input()"],
                              stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)  # fmt: skip
    assert reader.stdout is not None
    with socket.create_connection(("127.0.0.1", int(reader.stdout.readline()))) as connection:
        assert bytes_in_flight([reader.pid]) == 0
        connection.sendall(b"x" * 5000)
        wait_for("the bytes are in the kernel", lambda: bytes_in_flight([os.getpid()]) == 5000, 5)
        assert bytes_in_flight([reader.pid]) == 5000
    reader.communicate("\n", timeout=10)
    assert bytes_in_flight([reader.pid]) is None
