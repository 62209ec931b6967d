"""Benchmarks over the history of a run: tasks of lm-evaluation-harness on its checkpoints, results beside them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed_training.checkpoints.benchmarks import Result
from distributed_training.commands import extra
from distributed_training.errors import ConfigError
from distributed_training.operator.sample import State


class Benchmarks:
    """Tasks whose data is here."""

    def __init__(self, names: Sequence[str], cache: Path, limit: int | None) -> None:
        """limit: samples of each task. Raises ConfigError, LocalFault."""
        if importlib.util.find_spec("lm_eval") is None:
            install = extra("evaluate")
            raise ConfigError(f"--tasks: lm-evaluation-harness is not installed here; in the checkout: {install}")
        os.environ["DISABLE_MULTIPROC"] = "1"  # or the harness starts a process for each core
        sys.modules["evaluate"] = None  # type: ignore[assignment]  # it fetches metrics from the Hub, and runs them
        from distributed_training.operator import harness

        self._harness, self._limit = harness, limit
        self._tasks = harness.tasks(names, cache)

    def run(self, state: State) -> list[Result]:
        """Raises LocalFault."""
        report = self._harness.scores(state, self._tasks, self._limit)
        return list(_results(state, report))


def _results(state: State, report: Mapping[str, Any]) -> Iterator[Result]:
    """Of a group its mean, not its parts."""
    parts = {name for names in report["group_subtasks"].values() for name in names}
    for task, found in {**report["results"], **report.get("groups", {})}.items():
        if task in parts:
            continue
        for key, value in found.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = found.get(f"{name}_stderr,{filtered}")
            yield Result(
                tag=state.tag,
                round=state.round,
                state_root=state.root,
                task=task,
                metric=name if filtered == "none" else f"{name}:{filtered}",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                samples=report["n-samples"].get(task, {}).get("effective", 0),
                num_fewshot=report["n-shot"].get(task) or 0,
            )
