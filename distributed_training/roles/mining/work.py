"""What a miner does with a round: the seam between the role and the training thread."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distributed_training.data.base import PageSource
from distributed_training.data.loader import BatchStream
from distributed_training.data.patience import PageReads
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import DataUnavailable, OutOfMemory, said
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.assignment import Permutation, assignment_key
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.mining.onward import Onward
from distributed_training.training.device import out_of_memory
from distributed_training.training.inner import InnerLoop
from distributed_training.training.outer import RunState, Vector


@dataclass(frozen=True, slots=True)
class WorkTask:
    """One round for one uid. `beacon` chooses the pages and seeds the sketches."""

    round: int
    uid: int
    beacon: bytes
    state: RunState
    max_steps: int
    should_stop: Callable[[], bool]
    on_step: Callable[[StepRecord, float], None]
    onward: Onward | None = None  # overlap: it begins there; of `state` only the shape is of use

    @property
    def start(self) -> Vector:
        """Where the first step begins, fp32 [d]."""
        return self.state.params if self.onward is None else self.onward.end

    def shift(self, step: int) -> Vector | None:
        """As the inner loop asks."""
        return None if self.onward is None else self.onward.shift(step)

    @property
    def applied(self) -> int:
        """Of the learning rate's clock."""
        return self.state.applied if self.onward is None else self.onward.applied


@dataclass(frozen=True, slots=True, eq=False)
class WorkResult:
    delta: Vector  # fp32 [d], theta_r - theta_{r,H}; of work that was shifted: the sum of its own steps
    steps: tuple[StepRecord, ...]
    page_digests: tuple[bytes, ...]
    fault: DataUnavailable | None  # why the data ended early
    stall_s: float | None = None  # that steps waited for batches
    shifted_at: int | None = None  # steps done before the shift; None: it is still to come, or there is none


class Worker(Protocol):
    """Does the work of a round; blocking, runs in the training thread."""

    def work(self, task: WorkTask) -> WorkResult: ...


class Trainer:
    """The honest worker: inner steps on the assigned pages, from the public state."""

    def __init__(self, loop: InnerLoop, source: PageSource, tokenizer: Tokenizer, manifest: RunManifest) -> None:
        self._loop, self._reads, self._tokenizer, self._manifest = loop, PageReads(source), tokenizer, manifest

    def work(self, task: WorkTask) -> WorkResult:
        """Raises OutOfMemory after it made the next attempt smaller; LocalFault when training diverges."""
        try:
            return self._train(task)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            what = said(error)
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that did not fit
        smaller = self._loop.shrink()
        size = self._loop.micro_batch
        then = f"from now on with --micro-batch {size}" if smaller else "one sequence at a time is too much"
        raise OutOfMemory(f"{what} ({then})", retry=smaller)

    def _train(self, task: WorkTask) -> WorkResult:
        ended = False
        source = self._reads.until(lambda: ended or task.should_stop())
        stream = assigned_batches(self._manifest, source, self._tokenizer, task.round, task.beacon, task.uid)
        with stream:
            try:
                result = self._loop.run(
                    task.start,
                    stream,
                    applied_rounds=task.applied,
                    sketch_seed=task.beacon,
                    max_steps=task.max_steps,
                    should_stop=task.should_stop,
                    on_step=task.on_step,
                    shift=task.shift,
                )
            finally:
                ended = True  # a page that is still being read ahead is not waited for
            base = task.start
            if result.shifted_at is not None and task.onward is not None and task.onward.state is not None:
                base = task.onward.state.params
            delta = np.subtract(base, result.end, out=result.end)
            shifted = result.shifted_at
            return WorkResult(delta, result.steps, stream.page_digests, stream.fault, stream.stall_s, shifted)


def round_permutation(manifest: RunManifest, round_index: int, beacon: bytes) -> Permutation:
    """P_K of protocol section 4."""
    return Permutation(assignment_key(manifest.digest, round_index, beacon), manifest.data.num_pages)


def assigned_batches(
    manifest: RunManifest,
    source: PageSource,
    tokenizer: Tokenizer,
    round_index: int,
    beacon: bytes,
    uid: int,
    num_batches: int | None = None,
) -> BatchStream:
    """The batches of `uid` in a round, or so many of them: the same for the miner and for whoever audits it."""
    return BatchStream(
        source,
        tokenizer,
        round_permutation(manifest, round_index, beacon),
        max_uids=manifest.max_uids,
        uid=uid,
        batch_size=manifest.data.batch_size,
        sequence_length=manifest.data.sequence_length,
        num_batches=num_batches,
    )
