"""What the miners would have reached alone, and one worker on all their tokens: the demo's yardstick.

    python -m distributed_training.localnet.judge.baselines RUN_DIR NAMES...     (NAMES: uids and "union", with commas)

Same start, same pages, same number of inner steps in each round as the average holds, same optimiser and learning
rates; its moments are kept from round to round, as they would be without averaging. What was done stands in
RUN_DIR/baselines/jobs.jsonl, a line per round and one that ends it; it may still grow, so that a baseline trains beside
the rounds, on what the nodes leave of the processors. The names of one argument train side by side, each argument after
the one before. Each name writes RUN_DIR/baselines/NAME.json: {"losses": {round: held-out loss after it}} and, while it
works, {"done": steps}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distributed_training.data.base import PageSource
from distributed_training.data.loader import BatchStream, heldout_sequences
from distributed_training.data.tokens import TOKENIZER_FILE, Tokenizer, load_tokenizer
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import RunPaths
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.rules.assignment import Permutation, assignment_key
from distributed_training.settings.entry import run_main
from distributed_training.sources import open_pages
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop, Tokens
from distributed_training.training.model import run_model

FOLDER = "baselines"
JOBS = "jobs.jsonl"
OVER = '{"over":true}'
UNION = "union"
POLL_S = 0.2
NICENESS = 10


@dataclass(frozen=True, slots=True)
class RoundJob:
    """What was really done in one round."""

    index: int
    applied: int  # rounds applied before it: the clock of the learning rate
    beacon: bytes  # assignment beacon
    steps: dict[int, int]  # uid -> inner steps


def write_jobs(path: Path, rounds: Sequence[RoundJob], *, over: bool) -> None:
    """Appended; `over`: no more will come."""
    lines = [
        json.dumps({"index": r.index, "applied": r.applied, "beacon": r.beacon.hex(), "steps": r.steps}) for r in rounds
    ]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in (*lines, *([OVER] if over else [])))


def follow_jobs(path: Path, parent: int) -> Iterator[RoundJob]:
    """Every round from the first on, as soon as it is there. Ends with the file, or with the process `parent`."""
    with path.open(encoding="utf-8") as file:
        line = ""
        while os.getppid() == parent and line != OVER + "\n":
            line += file.readline()
            if not line.endswith("\n"):  # not written yet, or not to its end
                time.sleep(POLL_S)
                continue
            if line != OVER + "\n":
                e = json.loads(line)
                steps = {int(uid): n for uid, n in e["steps"].items()}
                yield RoundJob(e["index"], e["applied"], bytes.fromhex(e["beacon"]), steps)
                line = ""


def steps_of(name: str, rounds: Sequence[RoundJob]) -> int:
    """Inner steps that baseline `name` takes in all."""
    return sum(sum(r.steps.values()) if name == UNION else r.steps.get(int(name), 0) for r in rounds)


def deal(names: Sequence[str], rounds: Sequence[RoundJob], workers: int) -> list[list[str]]:
    """The longest first, each to the worker with the least to do; empty shares are left out."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    for name in sorted(names, key=lambda n: (-steps_of(n, rounds), n)):
        min(shares, key=lambda share: sum(steps_of(n, rounds) for n in share)).append(name)
    return [share for share in shares if share]


@dataclass(frozen=True, slots=True)
class Course:
    """What everybody trains on, and is measured by."""

    manifest: RunManifest
    pages: PageSource
    tokenizer: Tokenizer
    heldout: Tokens

    def stream(self, job: RoundJob, uid: int) -> BatchStream:
        m = self.manifest
        key = assignment_key(m.digest, job.index, job.beacon)
        return BatchStream(
            self.pages,
            self.tokenizer,
            Permutation(key, m.data.num_pages),
            max_uids=m.max_uids,
            uid=uid,
            batch_size=m.data.batch_size,
            sequence_length=m.data.sequence_length,
        )


class Baseline:
    """One worker that trains round after round without ever averaging: on the batches of one uid, or of all in turn."""

    def __init__(self, course: Course, name: str, told: Callable[[dict[str, Any]], None]) -> None:
        """`told` gets {"done": steps} while it works."""
        manifest = course.manifest
        self.name, self._course, self._told = name, course, told
        model = run_model(manifest.model)
        self._flat, self._loop = to_flat(model), InnerLoop(model, manifest)
        self._done, self._fresh = 0, True
        self._losses = {-1: self._evaluate()}

    def train(self, job: RoundJob) -> None:
        steps = {u: n for u, n in job.steps.items() if self.name in (UNION, str(u)) and n > 0}
        with ExitStack() as stack:
            streams = {uid: stack.enter_context(self._course.stream(job, uid)) for uid in sorted(steps)}
            result = self._loop.run(
                self._flat,
                in_turn(streams, steps),
                applied_rounds=job.applied,
                sketch_seed=None,
                max_steps=sum(steps.values()),
                should_stop=lambda: False,
                fresh_moments=self._fresh,
                on_step=lambda record, seconds: self._told({"done": self._done + record.step + 1}),
            )
        self._flat, self._fresh = result.end, False
        self._done += len(result.steps)
        self._losses[job.index] = self._evaluate()

    def end(self) -> None:
        self._told({"done": self._done, "losses": {str(index): loss for index, loss in self._losses.items()}})

    def _evaluate(self) -> float:
        return self._loop.evaluate(self._flat, self._course.heldout, self._course.manifest.data.batch_size)


def in_turn(streams: Mapping[int, Iterator[Tokens]], steps: Mapping[int, int]) -> Iterator[Tokens]:
    """Each stream's first `steps` batches, one of each uid in turn until all are used."""
    for step in range(max(steps.values(), default=0)):
        for uid, stream in streams.items():
            if step < steps[uid]:
                batch = next(stream, None)
                if batch is not None:
                    yield batch


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        raise ConfigError("expected RUN_DIR and uids or 'union'")
    torch.set_num_threads(1)
    os.nice(NICENESS)  # nodes come first
    paths = RunPaths(Path(argv[0]).absolute())
    manifest, parent = load_manifest(paths.manifest), os.getppid()
    data, folder = manifest.data, paths.root / FOLDER
    tokenizer = load_tokenizer(data.tokenizer, paths.root / TOKENIZER_FILE, data.eos_id)
    pages = open_pages(paths.pages, paths.root)
    heldout = heldout_sequences(pages, tokenizer, data.sequence_length, data.heldout_sequences)
    course = Course(manifest, pages, tokenizer, heldout)
    for names in argv[1:]:
        side_by_side = [
            Baseline(course, name, lambda told, target=folder / f"{name}.json": _write(target, told))
            for name in names.split(",")
        ]
        for job in follow_jobs(folder / JOBS, parent):
            for baseline in side_by_side:
                baseline.train(job)
        if os.getppid() == parent:
            for baseline in side_by_side:
                baseline.end()
    return 0


def _write(path: Path, document: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(document))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
