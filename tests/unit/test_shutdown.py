"""A stopped process ends: at once if it can, at the limit if something hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distributed_training.localnet.run.stop import stop_on_signals

PROGRAM = """
import asyncio, sys, time
from distributed_training.shutdown import run_until_stopped

async def life():
    print("running", flush=True)
    {loading}
    try:
        await asyncio.sleep(60)
    finally:
        {ending}

result = run_until_stopped(life(), {limit_s})
time.sleep({after_s})
sys.exit(7 if isinstance(result, asyncio.CancelledError) else 8)
"""


def stopped(
    ending: str, limit_s: float, after_s: float, number: int = signal.SIGTERM, loading: str = "pass"
) -> tuple[int, float]:
    """(exit code, seconds from the signal to the end) of a process that does `ending` when it is cancelled."""
    code = PROGRAM.format(ending=ending, limit_s=limit_s, after_s=after_s, loading=loading)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        began = time.monotonic()
        process.send_signal(number)
        return process.wait(30), time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_clean_end_keeps_its_code_and_the_limit_holds_to_the_very_end(number: int) -> None:
    assert stopped("pass", limit_s=5, after_s=0, number=number)[0] == 7
    assert stopped("pass", limit_s=0.3, after_s=20, number=number)[0] == 0


@pytest.mark.parametrize(
    "ending",
    ["time.sleep(20)", "asyncio.get_running_loop().run_in_executor(None, time.sleep, 20)", "await asyncio.sleep(20)"],
    ids=["blocked loop", "thread joined at the end", "slow cleanup"],
)
def test_what_hangs_hangs_no_longer_than_the_limit(ending: str) -> None:
    code, seconds = stopped(ending, limit_s=0.5, after_s=0)
    assert code == 0 and 0.5 <= seconds < 10


def test_a_load_that_keeps_the_loop_is_ended_at_the_limit() -> None:
    code, seconds = stopped("pass", limit_s=0.5, after_s=0, loading="time.sleep(20)")
    assert code == 0 and seconds < 10


def test_under_nohup_the_end_of_the_terminal_stops_nobody() -> None:
    code = PROGRAM.format(ending="pass", limit_s=5, after_s=0, loading="pass")
    nohup = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}"
    with subprocess.Popen([sys.executable, "-c", nohup], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


COMMAND = """
import pathlib, signal, sys, tempfile, time
from distributed_training.settings.entry import run_main
{before}

def main():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        print("running", flush=True)
        time.sleep({seconds})
    return 0

sys.exit(run_main(main))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_command_clears_up_behind_itself_whatever_stops_it(tmp_path: Path, number: int) -> None:
    code = COMMAND.format(before="", seconds=30)
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(number)
        assert process.wait(30) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_command_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    code = COMMAND.format(before="signal.signal(signal.SIGHUP, signal.SIG_IGN)", seconds=0.5)
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 0


def test_every_stop_of_the_demo_but_one_that_nohup_keeps_away() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            stop.orderly = True
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not stop.requested
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with stop_on_signals() as stop:
            stop.orderly = True
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert stop.requested
    finally:
        signal.signal(signal.SIGHUP, former)


LOADING = """
import atexit, sys, time
from distributed_training.settings.entry import only_loading, run_main

atexit.register(time.sleep, 20)  # what large libraries take to be put away

def main():
    with only_loading():
        print("running", flush=True)
        time.sleep(20)
    return 0

sys.exit(run_main(main))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_libraries_load_a_stop_ends_at_once(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LOADING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(number)
        assert process.wait(10) == 130
        assert process.stderr is not None and process.stderr.read() == "stopped\n"


DEAF = """
import asyncio, sys, time
from distributed_training.settings.entry import run_main
from distributed_training.shutdown import run_until_stopped

async def life():
    print("running", flush=True)
    await asyncio.sleep(60)

def main():
    run_until_stopped(life(), 20)
    return 0

code = run_main(main)
print("over", flush=True)
time.sleep(0.5)  # what an interpreter takes to end
sys.exit(code)
"""


def test_a_second_signal_changes_nothing_until_the_process_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "over\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
