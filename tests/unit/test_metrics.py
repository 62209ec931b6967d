from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from distributed_training.dashboard.fold import RunFold
from distributed_training.errors import ConfigError
from distributed_training.localnet.events import HANDLERS
from distributed_training.metrics.base import Metrics, plain
from distributed_training.metrics.events import Fault, Record, Step, Stopped
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.metrics.prometheus import PrometheusSink
from distributed_training.protocol.observed import Verdict

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
document_events = importlib.import_module("document_events")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_one_line_with_the_common_fields(tmp_path: Path) -> None:
    path = tmp_path / "nodes" / "events.jsonl"
    metrics = Metrics([JsonlSink(path)], role="miner", uid=3, threads=False)
    before = time.time()
    metrics.emit(Step(step=np.int64(4), loss=np.float32(0.5), tokens_per_s=float("inf")), round=2)  # type: ignore[arg-type]
    metrics.emit(Stopped(reason="done"))
    step, stopped = read(path)  # flushed: the file is read while it is open
    assert before <= step.pop("time") <= time.time()
    head = {"event": "step", "role": "miner", "uid": 3, "round": 2}
    assert step == head | {"step": 4, "loss": 0.5, "tokens_per_s": None}
    assert stopped["round"] is None
    metrics.close()


def test_a_second_start_appends(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics([JsonlSink(tmp_path / "e")], role="owner", uid=0)
        metrics.emit(Stopped(reason="done"))
        metrics.close()
    assert len(read(tmp_path / "e")) == 2


def test_half_a_line_of_before_costs_no_event_of_now(tmp_path: Path) -> None:
    (tmp_path / "e").write_text('{"event":"phase"}\n{"event":"st')
    metrics = Metrics([JsonlSink(tmp_path / "e")], role="owner", uid=0)
    metrics.emit(Stopped(reason="done"))
    metrics.close()
    _, half, told = (tmp_path / "e").read_text().splitlines()
    assert half == '{"event":"st' and json.loads(told)["event"] == "stopped"


def test_values_become_plain_json() -> None:
    value = {
        1: np.array([1.5, float("nan")], dtype=np.float32),
        "t": torch.tensor(2),
        "inf": -float("inf"),
        "b": b"\x00\xff",
        "v": Verdict.PASS,
        "p": Path("/x"),
        "n": {"k": (None, True, np.bool_(False))},
        "s": {4},
    }
    assert plain(value) == {
        "1": [1.5, None],
        "t": 2,
        "inf": None,
        "b": "00ff",
        "v": "pass",
        "p": "/x",
        "n": {"k": [None, True, False]},
        "s": [4],
    }
    json.dumps(plain(value), allow_nan=False)


def test_a_value_that_cannot_be_said_costs_that_value_and_nothing_is_told_after_the_end(tmp_path: Path) -> None:
    class Strange:
        def __str__(self) -> str:
            raise ValueError("no")

    metrics = Metrics([JsonlSink(tmp_path / "e")], role="miner", uid=0)
    metrics.emit(Fault(what="disk", detail=Strange()))  # type: ignore[arg-type]
    metrics.close()
    metrics.emit(Stopped(reason="done"))
    metrics.close()
    (event,) = read(tmp_path / "e")
    assert event["what"] == "disk" and event["detail"] is None


def test_what_is_in_no_record_cannot_be_told_and_no_record_hides_who_speaks() -> None:
    with pytest.raises(TypeError, match="reasons"):
        Stopped(reasons="done")  # type: ignore[call-arg]
    for record in get_args(Record):
        assert record.__doc__ and not {"time", "event", "role", "uid", "round"} & {f.name for f in fields(record)}


def test_what_the_view_of_a_run_the_page_and_prometheus_read_is_told() -> None:
    read = {name.removeprefix("_on_") for name in (*dir(RunFold), *dir(PrometheusSink)) if name.startswith("_on_")}
    assert len(read) > 10 and read | set(HANDLERS) <= {record.__name__.lower() for record in get_args(Record)}


def test_the_page_of_the_events_is_current() -> None:
    written = document_events.page()
    assert document_events.PAGE.read_text() == written, "run python scripts/document_events.py"
    assert "| `tokens_per_s` | number | tokens/s |" in written
    assert "| `missing` | map to list of integer |" in written


def test_an_unwritable_event_file_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="cannot write the event file"):
        JsonlSink(tmp_path / "f" / "events.jsonl")
