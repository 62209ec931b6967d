"""What the miners would have reached alone, and one worker on all their tokens: the demo's yardstick.

    python -m distributed_training.localnet.judge.baselines RUN_DIR NAME...      (NAME: a uid, or "union")

Same start, same pages, same number of inner steps in each round as really done, same learning rates; AdamW keeps its
moments from round to round, as it would without averaging. Jobs come from RUN_DIR/baselines/jobs.json; each NAME
writes RUN_DIR/baselines/NAME.json: {"losses": {round: held-out loss after it}} and, while it works, {"done": steps}.
"""

from __future__ import annotations

import json
import sys
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
from distributed_training.settings.config import run_main
from distributed_training.sources import open_pages
from distributed_training.training.inner import InnerLoop, Tokens
from distributed_training.training.model import build_model, to_flat

FOLDER = "baselines"
JOBS = "jobs.json"
UNION = "union"


@dataclass(frozen=True, slots=True)
class RoundJob:
    """What was really done in one round."""

    index: int
    applied: int  # rounds applied before it: the clock of the learning rate
    beacon: bytes  # assignment beacon
    steps: dict[int, int]  # uid -> inner steps


def write_jobs(paths: RunPaths, rounds: Sequence[RoundJob]) -> None:
    folder = paths.root / FOLDER
    folder.mkdir(exist_ok=True)
    entries = [{"index": r.index, "applied": r.applied, "beacon": r.beacon.hex(), "steps": r.steps} for r in rounds]
    (folder / JOBS).write_text(json.dumps(entries) + "\n")


def read_jobs(paths: RunPaths) -> list[RoundJob]:
    entries = json.loads((paths.root / FOLDER / JOBS).read_text())
    return [
        RoundJob(e["index"], e["applied"], bytes.fromhex(e["beacon"]), {int(u): n for u, n in e["steps"].items()})
        for e in entries
    ]


def steps_of(name: str, rounds: Sequence[RoundJob]) -> int:
    """Inner steps that baseline `name` takes in all."""
    return sum(sum(r.steps.values()) if name == UNION else r.steps.get(int(name), 0) for r in rounds)


def deal(names: Sequence[str], rounds: Sequence[RoundJob], workers: int) -> list[list[str]]:
    """The longest first, each to the worker with the least to do; empty shares are left out."""
    shares: list[list[str]] = [[] for _ in range(workers)]
    for name in sorted(names, key=lambda n: (-steps_of(n, rounds), n)):
        min(shares, key=lambda share: sum(steps_of(n, rounds) for n in share)).append(name)
    return [share for share in shares if share]


class Baseline:
    """One worker that trains through all rounds without ever averaging."""

    def __init__(self, manifest: RunManifest, pages: PageSource, tokenizer: Tokenizer) -> None:
        self._manifest, self._pages, self._tokenizer = manifest, pages, tokenizer
        self._heldout = heldout_sequences(
            pages, self._tokenizer, manifest.data.sequence_length, manifest.data.heldout_sequences
        )

    def train(
        self, rounds: Sequence[RoundJob], uids: Sequence[int] | None, progress: Callable[[int], None]
    ) -> dict[int, float]:
        """Round -> held-out loss after it; -1 is the start. `uids` None: everybody's batches, in turn."""
        model = build_model(self._manifest.model.config, self._manifest.model.init_seed)
        flat, loop = to_flat(model), InnerLoop(model, self._manifest)
        batch_size = self._manifest.data.batch_size
        losses = {-1: loop.evaluate(flat, self._heldout, batch_size)}
        done = 0
        for job in rounds:
            steps = {u: n for u, n in job.steps.items() if (uids is None or u in uids) and n > 0}
            with ExitStack() as stack:
                streams = {uid: stack.enter_context(self._stream(job, uid)) for uid in sorted(steps)}
                result = loop.run(
                    flat,
                    in_turn(streams, steps),
                    applied_rounds=job.applied,
                    sketch_seed=None,
                    max_steps=sum(steps.values()),
                    should_stop=lambda: False,
                    fresh_moments=job is rounds[0],
                    on_step=lambda record, seconds, before=done: progress(before + record.step + 1),
                )
            flat = result.end
            done += len(result.steps)
            losses[job.index] = loop.evaluate(flat, self._heldout, batch_size)
        return losses

    def _stream(self, job: RoundJob, uid: int) -> BatchStream:
        m = self._manifest
        key = assignment_key(m.digest, job.index, job.beacon)
        return BatchStream(
            self._pages,
            self._tokenizer,
            Permutation(key, m.data.num_pages),
            max_uids=m.max_uids,
            uid=uid,
            batch_size=m.data.batch_size,
            sequence_length=m.data.sequence_length,
        )


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
        raise ConfigError("expected RUN_DIR and at least one uid or 'union'")
    torch.set_num_threads(1)
    paths = RunPaths(Path(argv[0]).absolute())
    manifest, rounds = load_manifest(paths.manifest), read_jobs(paths)
    data = manifest.data
    tokenizer = load_tokenizer(data.tokenizer, paths.root / TOKENIZER_FILE, data.eos_id)
    baseline = Baseline(manifest, open_pages(paths.pages, paths.root), tokenizer)
    for name in argv[1:]:
        target = paths.root / FOLDER / f"{name}.json"
        uids = None if name == UNION else [int(name)]
        losses = baseline.train(rounds, uids, lambda done, target=target: _write(target, {"done": done}))
        _write(target, {"done": steps_of(name, rounds), "losses": {str(k): v for k, v in losses.items()}})
    return 0


def _write(path: Path, document: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(document))
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
