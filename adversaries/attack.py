"""An honest node, step by step: an attack is a class that overrides one of these steps (docs/adversaries.md).

`Bench` is the honest trainer with a count of what was really computed, which is what pay is held against.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distributed_training.assembly import Adapters, honest_worker
from distributed_training.averaging.codecs.base import Codec, Layout, Vector
from distributed_training.averaging.combine import SliceOutput, reduce_slice
from distributed_training.averaging.feedback import Encoded, FeedbackFiles, encode_vector
from distributed_training.averaging.plan import RoundPlan
from distributed_training.data.loader import BatchStream, pages_used
from distributed_training.engine import Engine
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Commitment, SliceSpec, StepRecord, WorkRecord
from distributed_training.roles.mining.work import WorkResult, WorkTask, assigned_batches, round_permutation
from distributed_training.training.inner import InnerResult, Tokens

FORWARD_COST = 1 / 3  # of a step: its backward pass takes twice as long
TYPICAL_MOVE = 3e-3  # per coordinate and round: about what AdamW moves


class Bench:
    """What a miner computes with. `cost`: round -> what was computed in it, in honest steps."""

    def __init__(self, engine: Engine, manifest: RunManifest) -> None:
        self.engine, self.manifest = engine, manifest
        self.cost: Counter[int] = Counter()
        self._honest = honest_worker(engine, manifest)

    def honest(self, task: WorkTask, *, paid_by_another: bool = False) -> WorkResult:
        """The work as it should be done; `paid_by_another`: somebody else's processor did it already."""
        result = self._honest.work(task)
        self.spend(task, 0 if paid_by_another else len(result.steps))
        return result

    def train(self, task: WorkTask, batches: Iterator[Tokens], steps: int, on_step: Any = None) -> InnerResult:
        """Inner steps from the public state on any batches. Costs by their tokens."""
        seen = [0]

        def counted() -> Iterator[Tokens]:
            for batch in batches:
                seen[0] += batch.size
                yield batch

        result = self.engine.loop.run(
            task.state.params,
            counted(),
            applied_rounds=task.state.applied,
            sketch_seed=task.beacon,
            max_steps=steps,
            should_stop=task.should_stop,
            on_step=on_step or task.on_step,
        )
        self.spend(task, len(result.steps) * seen[0] / max(1, len(result.steps)) / self.manifest.tokens_per_step)
        return result

    def spend(self, task: WorkTask, steps: float) -> None:
        self.cost[task.round] += steps  # type: ignore[assignment]

    def batches(self, task: WorkTask, uid: int | None = None) -> BatchStream:
        """Those of this uid, or of another one; close it."""
        who = task.uid if uid is None else uid
        return assigned_batches(
            self.manifest, self.engine.source, self.engine.tokenizer, task.round, task.beacon, who
        )  # fmt: skip

    def pages(self, task: WorkTask, steps: int) -> tuple[bytes, ...]:
        """Digests of the pages that `steps` honest steps would have used: public, so a cheat names them too."""
        return pages_used(
            self.engine.source,
            self.engine.tokenizer,
            round_permutation(self.manifest, task.round, task.beacon),
            max_uids=self.manifest.max_uids,
            uid=task.uid,
            batch_size=self.manifest.data.batch_size,
            sequence_length=self.manifest.data.sequence_length,
            num_steps=steps,
        )

    def invented(self, random: np.random.Generator, step: int, like: StepRecord | None = None) -> StepRecord:
        """A step that was not done, as it might have looked; `like`: the last one that was."""
        level = 3.0 - 0.02 * step if like is None else float(np.mean(like.losses))
        losses = random.normal(level, 0.1, self.manifest.data.batch_size).astype(np.float16)
        shape = (len(self.engine.loop.groups), self.manifest.audit.sketch_size)
        size = 0.05 if like is None else np.std(like.sketch, axis=1, keepdims=True)
        sketch = random.normal(0.0, size, shape).astype(np.float16)
        norm = random.normal(1.0, 0.1) * (1.0 if like is None else like.grad_norm)
        return StepRecord(
            step=step,
            losses=tuple(float(x) for x in losses),
            grad_norm=float(np.float32(abs(norm))),
            sketch=tuple(tuple(float(x) for x in row) for row in sketch),
        )


def dice(task: WorkTask) -> np.random.Generator:
    """What a cheat invents in a round follows from its beacon and uid."""
    return np.random.default_rng([int.from_bytes(task.beacon[:8], "little"), task.uid])


@dataclass(kw_only=True, eq=False)
class Attack:
    """Every step as an honest node does it. A subclass is a dataclass too: its own fields are its flags."""

    fellows: tuple[int, ...] = ()  # uids of all that run this attack, our own among them
    victim_dir: Path = field(default_factory=Path)  # folder of a node that was stolen from

    def work(self, task: WorkTask, bench: Bench) -> WorkResult:
        """A round's work, and what is claimed of it. In the training thread."""
        return bench.honest(task)

    def encode(self, files: FeedbackFiles, delta: Vector, layout: Layout, codec: Codec, start: bytes) -> Encoded:
        """Its vector in bytes, and what they leave out. See `feedback.encode_vector`."""
        return encode_vector(files, delta, layout, codec, start)

    def reduce(
        self,
        plan: RoundPlan,
        spec: SliceSpec,
        received: Mapping[bytes, Mapping[int, Any]],
        works: Mapping[bytes, WorkRecord],
        manifest: RunManifest,
    ) -> SliceOutput:
        """A slice of ours, of what was received. See `combine.reduce_slice`."""
        return reduce_slice(plan, spec, received, works, manifest)

    async def say(self, commitment: Commitment, doors: Adapters) -> Commitment:
        """What goes on chain of what we were about to say."""
        return commitment

    async def open(self, peer_key: bytes, method: str, timeout_s: float, doors: Adapters) -> Stream:
        """A stream to a peer: whatever we send it or ask it. Raises NetworkFault instead of sending."""
        return await doors.transport.open(peer_key, method, timeout_s)

    async def answer(self, method: str, stream: Stream, honest: StreamHandler) -> None:
        """A stream that a peer opened. Raises PeerFault instead of answering."""
        await honest(stream)

    async def beside(self, doors: Adapters) -> None:
        """Whatever it does besides, from its start on, until it is cancelled."""


class Bent:
    """A stream around another: a subclass bends what is read or written."""

    def __init__(self, inner: Stream) -> None:
        self.inner, self.written = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def write(self, frame: bytes, timeout_s: float) -> None:
        await self.inner.write(frame, timeout_s)
        self.written += 1


def padded(steps: tuple[StepRecord, ...], batch_size: int) -> tuple[StepRecord, ...]:
    """The records of steps over fewer sequences, as if there had been all: their losses are told again."""
    return tuple(replace(s, losses=(s.losses * batch_size)[:batch_size]) for s in steps)
