"""benchmarks.json, beside the checkpoints: what each state of a run scored in which benchmark."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distributed_training.checkpoints.checking import read_bounded
from distributed_training.errors import LocalFault, WireError
from distributed_training.files import write_whole

log = logging.getLogger(__name__)

FILE = "benchmarks.json"
MAX_BYTES = 4 << 20
MAX_ROUNDS = 8  # columns of the table
Name = Annotated[str, Field(pattern=r"^[\w.,:+-]{1,120}$")]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tag: Name  # of the checkpoint, as on the Hub: RUN.ROUND
    round: Annotated[int, Field(ge=0)]
    state_root: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    task: Name
    metric: Name
    value: Number
    stderr: Number | None
    samples: Annotated[int, Field(ge=0)]
    num_fewshot: Annotated[int, Field(ge=0)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1]
    results: list[Result]


def read_results(path: Path) -> list[Result]:
    """In order of task, metric and round; for readers that go on without them: none where the file is none of ours."""
    try:
        return _read(path)
    except LocalFault as fault:
        log.warning("%s", fault)
        return []


def add_results(path: Path, results: Sequence[Result]) -> None:
    """Those of the same state and task before are replaced. Raises LocalFault for a file that is none of ours,
    OSError."""
    measured = {(r.tag, r.task) for r in results}
    kept = [r for r in _read(path) if (r.tag, r.task) not in measured]
    ordered = sorted([*kept, *results], key=lambda r: (r.task, r.metric, r.round, r.tag))
    write_whole(path, (_File(version=1, results=ordered).model_dump_json(indent=1) + "\n").encode())


def _read(path: Path) -> list[Result]:
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(read_bounded(path, MAX_BYTES)).results
    except (ValidationError, WireError):
        raise LocalFault(f"{path} holds no results of benchmarks that can be read; move it away") from None


def table(results: Sequence[Result]) -> str:
    """Markdown, a row for each metric of a task, the last rounds as columns."""
    rounds = sorted({r.round for r in results})[-MAX_ROUNDS:]
    found = {(r.task, r.metric, r.round): f"{r.value:.4f}" for r in results}
    lines = [
        "| task | metric | " + " | ".join(f"round {index}" for index in rounds) + " |",
        "|---" * (2 + len(rounds)) + "|",
    ]
    for task, metric in sorted({(r.task, r.metric) for r in results if r.round in rounds}):
        lines.append(f"| {task} | {metric} | " + " | ".join(found.get((task, metric, i), "") for i in rounds) + " |")
    return "\n".join(lines)
