from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distributed_training.errors import ConfigError
from distributed_training.metrics.base import JsonlSink, Metrics, plain
from distributed_training.protocol.types import Verdict


class Broken:
    """A sink whose disk or network is gone."""

    calls = 0

    def write(self, event: Mapping[str, Any]) -> None:
        self.calls += 1
        raise RuntimeError("gone")

    def close(self) -> None:
        raise RuntimeError("gone")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_event_is_one_line_with_the_common_fields(tmp_path: Path) -> None:
    path = tmp_path / "nodes" / "events.jsonl"
    metrics = Metrics([JsonlSink(path)], role="miner", uid=3)
    before = time.time()
    metrics.emit("step", round=2, step=np.int64(4), loss=np.float32(0.5))
    metrics.emit("ready")
    step, ready = read(path)  # flushed: the file is read while it is open
    assert before <= step.pop("time") <= time.time()
    assert step == {"event": "step", "role": "miner", "uid": 3, "round": 2, "step": 4, "loss": 0.5}
    assert ready["round"] is None


def test_a_second_start_appends(tmp_path: Path) -> None:
    for _ in range(2):
        metrics = Metrics([JsonlSink(tmp_path / "e")], role="owner", uid=0)
        metrics.emit("ready")
        metrics.close()
    assert len(read(tmp_path / "e")) == 2


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


def test_a_failing_sink_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    broken = Broken()
    metrics = Metrics([broken, JsonlSink(tmp_path / "e")], role="miner", uid=0)
    metrics.emit("a")
    metrics.emit("b")
    assert broken.calls == 1
    assert [event["event"] for event in read(tmp_path / "e")] == ["a", "b"]
    metrics.close()


def test_closing_and_strange_values_never_raise(tmp_path: Path) -> None:
    class Strange:
        def __str__(self) -> str:
            raise ValueError("no")

    metrics = Metrics([Broken(), JsonlSink(tmp_path / "e")], role="miner", uid=0)
    metrics.emit("strange", value=Strange(), ok=1)
    metrics.close()
    metrics.emit("after close")
    assert read(tmp_path / "e")[0]["ok"] == 1


def test_an_event_about_another_node_names_its_uid(tmp_path: Path) -> None:
    metrics = Metrics([JsonlSink(tmp_path / "e")], role="validator", uid=5)
    metrics.emit("audit", round=1, uid=2)
    metrics.emit("ready")
    assert [event["uid"] for event in read(tmp_path / "e")] == [2, 5]


def test_an_unwritable_event_file_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ConfigError, match="cannot write the event file"):
        JsonlSink(tmp_path / "f" / "events.jsonl")
