"""The last lines of the demo are true and can be pasted, whatever the path."""

from __future__ import annotations

import copy
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from localnet_recording import recorded_summary

from distributed_training.checkpoints.description import STATE_FILE
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.show.next_steps import DEMO, NEXT, next_lines
from distributed_training.operator.published import find


@pytest.fixture
def summary() -> dict[str, Any]:
    return copy.deepcopy(recorded_summary())


def told(summary: dict[str, Any], root: Path) -> dict[str, list[str]]:
    """What -> the words a shell makes of it."""
    lines = [line.partition("  ") for line in next_lines(summary, RunPaths(root))]
    return {what: shlex.split(text) for what, _, text in lines}


def test_a_success_names_picture_sample_and_what_was_not_tried_yet(summary: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "my 'first' run"
    (root / "checkpoints" / "round-000002").mkdir(parents=True)
    said = told(summary, root)
    assert said["picture"] == [str(root / "report.png")]
    sample, page = said["let the model write"], said["page"]
    assert sample[0] == sys.executable and Path(sample[1]).is_file()
    assert sample[2:] == [str(root), "def main("]
    assert page == [sys.executable, "-m", "distributed_training.dashboard", "--run-dir", str(root)]
    assert "next: miners of different speed" not in said  # the recording had 1,1,2,4
    assert said["next: one that cheats"][:2] == ["bash", str(DEMO[1])]
    summary["params"] |= {"speeds": [1, 1], "adversary": "free-rider:1"}
    assert [what for what in told(summary, root) if "next" in what] == [
        "next: miners of different speed", "next: nodes killed on the way",
    ]  # fmt: skip


def test_a_failure_names_the_logs_and_how_to_get_missing_rounds(summary: dict[str, Any], tmp_path: Path) -> None:
    summary["ok"] = summary["checks"]["rounds_applied"] = False
    said = told(summary, tmp_path)
    assert "let the model write" not in said and not any("next" in what for what in said)
    assert said["what the nodes say"] == [f"{tmp_path}/nodes/*/log.txt"]
    assert said["the missing rounds"][-2:] == ["--run-dir", str(tmp_path)]


@pytest.mark.parametrize("flags", [flags for _, flags in NEXT])
def test_what_to_try_next_is_what_the_demo_understands(flags: tuple[str, ...]) -> None:
    parse_options(list(flags))


def test_a_run_directory_is_enough_to_find_its_newest_state(tmp_path: Path) -> None:
    for run_dir, said in (
        (tmp_path, "expected checkpoints in it, or REPO_OR_DIR where they are"),
        (None, "REPO_OR_DIR"),
    ):
        with pytest.raises(ConfigError, match=said):
            find(Namespace(place=None, run_dir=run_dir, revision=None))
    for index in (2, 10):
        (tmp_path / "checkpoints" / f"round-{index:06d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"round-{index:06d}" / STATE_FILE).write_text("{}")
    _, newest = find(Namespace(place=None, run_dir=tmp_path, revision=None))
    assert newest.round == 10
