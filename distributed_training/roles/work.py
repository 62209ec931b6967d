"""What a miner does with a round: the seam between the role and the training thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from distributed_training.data.base import PageSource
from distributed_training.data.loader import BatchStream
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import DataUnavailable
from distributed_training.manifest import RunManifest
from distributed_training.rules.assignment import Permutation, assignment_key
from distributed_training.training.inner import InnerLoop
from distributed_training.training.outer import RunState, Vector
from distributed_training.types import StepRecord


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


@dataclass(frozen=True, slots=True, eq=False)
class WorkResult:
    delta: Vector  # fp32 [d], theta_r - theta_{r,H}
    steps: tuple[StepRecord, ...]
    page_digests: tuple[bytes, ...]
    fault: DataUnavailable | None  # why the data ended early


class Worker(Protocol):
    """Does the work of a round; blocking, runs in the training thread."""

    def work(self, task: WorkTask) -> WorkResult: ...


class Trainer:
    """The honest worker: inner steps on the assigned pages, from the public state."""

    def __init__(self, loop: InnerLoop, source: PageSource, tokenizer: Tokenizer, manifest: RunManifest) -> None:
        self._loop, self._source, self._tokenizer, self._manifest = loop, source, tokenizer, manifest

    def work(self, task: WorkTask) -> WorkResult:
        stream = assigned_batches(self._manifest, self._source, self._tokenizer, task.round, task.beacon, task.uid)
        with stream:
            result = self._loop.run(
                task.state.params,
                stream,
                applied_rounds=task.state.applied,
                sketch_seed=task.beacon,
                max_steps=task.max_steps,
                should_stop=task.should_stop,
                on_step=task.on_step,
            )
            return WorkResult(task.state.params - result.end, result.steps, stream.page_digests, stream.fault)


def round_permutation(manifest: RunManifest, round_index: int, beacon: bytes) -> Permutation:
    """P_K of protocol section 4."""
    return Permutation(assignment_key(manifest.digest, round_index, beacon), manifest.data.num_pages)


def assigned_batches(
    manifest: RunManifest, source: PageSource, tokenizer: Tokenizer, round_index: int, beacon: bytes, uid: int
) -> BatchStream:
    """The batches of `uid` in a round: the same for the miner and for whoever audits it."""
    return BatchStream(
        source,
        tokenizer,
        round_permutation(manifest, round_index, beacon),
        max_uids=manifest.max_uids,
        uid=uid,
        batch_size=manifest.data.batch_size,
        sequence_length=manifest.data.sequence_length,
    )
