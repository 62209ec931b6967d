"""A stopped process ends: at once if it can, at the limit if something hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from distributed_training.shutdown import EXIT_FORCED

PROGRAM = """
import asyncio, sys, time
from distributed_training.shutdown import run_until_stopped

async def life():
    print("running", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        {ending}

result = run_until_stopped(life(), {limit_s})
time.sleep({after_s})
sys.exit(7 if isinstance(result, asyncio.CancelledError) else 8)
"""


def stopped(ending: str, limit_s: float, after_s: float, number: int = signal.SIGTERM) -> tuple[int, float]:
    """(exit code, seconds from the signal to the end) of a process that does `ending` when it is cancelled."""
    code = PROGRAM.format(ending=ending, limit_s=limit_s, after_s=after_s)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        began = time.monotonic()
        process.send_signal(number)
        return process.wait(30), time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_clean_end_is_not_disturbed_by_the_limit(number: int) -> None:
    assert stopped("pass", limit_s=0.3, after_s=0.8, number=number)[0] == 7


@pytest.mark.parametrize(
    "ending",
    ["time.sleep(20)", "asyncio.get_running_loop().run_in_executor(None, time.sleep, 20)", "await asyncio.sleep(20)"],
    ids=["blocked loop", "thread joined at the end", "slow cleanup"],
)
def test_what_hangs_hangs_no_longer_than_the_limit(ending: str) -> None:
    code, seconds = stopped(ending, limit_s=0.5, after_s=0)
    assert code == EXIT_FORCED and 0.5 <= seconds < 10
