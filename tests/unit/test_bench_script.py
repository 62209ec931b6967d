"""The benchmarks' dispatcher: what there is, what is asked for wrongly, the table and the exit code."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.table import Stopwatch, cell, show
from distributed_training.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
bench = importlib.import_module("bench")


def test_no_name_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in ("faults", "churn", "sync", "simulate"))


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no benchmark 'fault'.*faults.*simulate"):
        bench.main(["fault"])


def test_result_is_printed_and_written_with_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "churn.json"
    rows = [{"round": 0}, {"round": 1}]
    result = {"name": "churn", "rows": rows, "failures": ["round 1 hung"], "machine": Stopwatch().machine()}
    assert bench.report(result, target) == 1
    out = capsys.readouterr().out
    assert "FAILED: round 1 hung" in out and "churn (" in out
    written = json.loads(target.read_text())
    assert written["rows"] == rows
    assert written["machine"]["cores"] >= 1 and len(written["machine"]["load_average_at_start"]) == 3
    assert bench.report(result | {"failures": []}, None) == 0


def test_table_has_a_column_for_every_key_and_marks_what_was_not_measured() -> None:
    out = io.StringIO()
    rows = [{"fault": "kill", "round_s": 12.3456}, {"fault": "lie [x]", "hung": False}]
    show(rows, console=Console(file=out, width=100))
    text = out.getvalue()
    assert all(part in text for part in ("fault", "round_s", "hung", "12.35", "lie [x]", "no", "-"))
    assert (cell(True), cell(1234567), cell(1234.5), cell(None), cell([1, 2])) == (
        "yes",
        "1,234,567",
        "1,234",
        "-",
        "1, 2",
    )
