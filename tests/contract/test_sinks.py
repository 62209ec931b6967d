"""What every sink keeps: the node's loop never waits for it and never hears of its troubles, and a close is short."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from broken_sinks import Gone, Stuck
from sink_rig import EACH, RIGS, Rig

from distributed_training.metrics.base import CLOSE_S, QUEUE_EVENTS, WELL_S, Metrics, Sink
from distributed_training.metrics.events import Fault, Record
from distributed_training.metrics.jsonl import JsonlSink

MANY = QUEUE_EVENTS + 100
FAULT = Fault(what="disk", detail="full")
LOOP_S = 2e-3  # an event on the loop, mean; generous, for other processes run too


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return RIGS[request.param](tmp_path)


def fan_out(*sinks: Sink) -> Metrics:
    return Metrics(sinks, role="miner", uid=3)


def emit_many(metrics: Metrics, record: Record = FAULT) -> None:
    """Raises what `emit` raises; fails if it waits."""
    began = time.monotonic()
    for number in range(MANY):
        metrics.emit(record, round=number)
    assert time.monotonic() - began < MANY * LOOP_S


def close_in_time(metrics: Metrics, limit_s: float = CLOSE_S) -> None:
    began = time.monotonic()
    metrics.close(limit_s)
    assert time.monotonic() - began < limit_s + 2


def test_every_kind_of_event_is_taken_and_a_close_writes_what_waits(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    assert {type(record) for record in EACH} == set(get_args(Record))
    metrics = fan_out(rig.sink)
    for number in range(40):
        for record in EACH:
            metrics.emit(record, round=number)
    close_in_time(metrics)
    assert rig.seen() == 40
    assert not caplog.messages


def test_a_far_side_that_goes_away_is_said_once_and_costs_only_this_sink(
    rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.jsonl"
    metrics = fan_out(rig.sink, JsonlSink(other))
    metrics.emit(EACH[1])
    until(lambda: bool(other.read_text()))
    rig.vanish()
    for number in range(100):
        for record in EACH:
            metrics.emit(record, round=number)
    until(lambda: not rig.fails or "loses events" in other.read_text())
    close_in_time(metrics)
    told = [json.loads(line) for line in other.read_text().splitlines()]
    about = [event for event in told if event["event"] == "fault" and event["what"] == "metrics"]
    assert len(told) - len(about) == 1 + 100 * len(EACH)
    assert len(about) == sum("loses events" in line for line in caplog.messages) == (1 if rig.fails else 0)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def test_a_sink_that_blocks_for_ever_holds_nobody_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, stuck = tmp_path / "e", Stuck()
    metrics = fan_out(stuck, JsonlSink(path))
    metrics.emit(FAULT)
    assert stuck.entered.wait(10)
    for number in range(QUEUE_EVENTS // 2):
        metrics.emit(EACH[1], round=number)
    until(lambda: path.read_text().count("\n") == 1 + QUEUE_EVENTS // 2)
    emit_many(metrics, EACH[1])
    close_in_time(metrics, 0.3)
    lost = [line for line in caplog.messages if "Stuck loses events" in line]
    assert len(lost) == 1 and str(QUEUE_EVENTS) in lost[0]
    assert any("Stuck does not end" in line for line in caplog.messages)
    assert "Stuck loses events" in path.read_text()


@pytest.mark.parametrize("threads", [True, False])
def test_a_sink_that_raises_always_is_said_once_and_again_when_it_is_mended(
    threads: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = Gone()
    metrics = Metrics([gone, JsonlSink(tmp_path / "e")], role="miner", uid=3, threads=threads)
    for number in range(50):
        metrics.emit(EACH[1], round=number)
    until(lambda: metrics._outlets[0].lost == 50)
    gone.mended = True
    metrics.emit(EACH[1])  # too soon to say so
    until(lambda: len(gone.taken) == 1)
    metrics._outlets[0].lost_at -= WELL_S
    metrics.emit(FAULT)
    until(lambda: metrics._outlets[0].lost == 0)
    gone.mended = False
    metrics.emit(FAULT)
    close_in_time(metrics)
    assert [event["event"] for event in gone.taken] == ["phase", "fault"]
    assert caplog.messages == [
        "Gone loses events: ConnectionError: gone",
        "Gone takes events again, 50 were lost",
        "Gone loses events: ConnectionError: gone",
        "Gone lost events: 1",
        "Gone did not close: ConnectionError: gone",
    ]
    assert (tmp_path / "e").read_text().count("\n") == 54, "one is a fault about the other"


def test_a_sink_that_would_end_its_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """As libraries do that call sys.exit, or panic in Rust."""
    gone = Gone(SystemExit("gone"))
    metrics = fan_out(gone)
    metrics.emit(FAULT)
    until(lambda: bool(caplog.messages))
    gone.mended = True
    metrics.emit(FAULT)
    close_in_time(metrics)
    assert len(gone.taken) == 1
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "Gone loses events", "Gone lost events", "Gone did not close",
    ]  # fmt: skip


def test_sinks_that_all_fail_do_not_tell_each_other_for_ever() -> None:
    sinks = [Gone(), Gone(), Gone()]
    metrics = fan_out(*sinks)
    emit_many(metrics)
    close_in_time(metrics)


def test_a_process_ends_beside_a_sink_that_hangs(tmp_path: Path) -> None:
    """Its thread is not waited for, even when nobody closes."""
    code = (
        "import threading; from distributed_training.metrics.base import Metrics\n"
        "from distributed_training.metrics.events import Stopped\n"
        "class S:\n"
        "    def write(self, event): threading.Event().wait()\n"
        "    close = lambda self: None\n"
        "Metrics([S()], role='miner', uid=0).emit(Stopped(reason='x'))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0
