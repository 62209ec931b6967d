"""Logs of one round's first steps as different miners make them, honest or not, all from one state and one text.

Legend: BS sequences a step; T tokens a sequence; d parameters.
"""

from __future__ import annotations

import dataclasses
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import StepRecord
from distributed_training.recipes.build import draft_manifest
from distributed_training.settings.flags import merge
from distributed_training.training.device import Precision
from distributed_training.training.flat import Flat, groups, to_flat, trained
from distributed_training.training.inner import InnerLoop, InnerResult, Tokens
from distributed_training.training.model import build_model

State = tuple[Flat, int]  # parameters [d], applied rounds
_SEED = b"drift"
_WARM_DATA, _OWN_DATA, _OTHER_DATA = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Miner:
    """How a round is computed, and in what the log of it then lies."""

    name: str
    precision: Precision = "fp32"
    threads: int = 1
    micro_batch: int | None = None  # None: the whole batch
    batch: int | None = None  # sequences it trains on; None: all
    data: int = _OWN_DATA
    frozen_blocks: int = 0  # of which no gradient is computed
    trains: bool = True  # else the state stays, and gradients are invented

    def tells(self, batch_size: int) -> bool:
        """Something of its own in a table of how far honest miners are from the auditor."""
        return (self.precision == "bf16" and self.threads == 1) or (self.micro_batch == batch_size) != (
            self.threads == 1
        )


AUDITOR = Miner("fp32, whole batch, 1 thread")


def honest(batch_size: int) -> list[Miner]:
    """Both precisions, one and two threads, micro-batches of 1, 4 and the whole batch."""
    return [
        Miner(f"{precision}, micro-batch {micro}, {threads} thread{'s' * (threads > 1)}", precision, threads, micro)
        for precision in ("fp32", "bf16")
        for micro in (1, 4, batch_size)
        for threads in (1, 2)
    ]


def cheats(batch_size: int) -> list[Miner]:
    return [
        Miner(f"{batch_size * 7 // 8} of {batch_size} sequences", batch=batch_size * 7 // 8),
        Miner("first block frozen", frozen_blocks=1),
        Miner("other data", data=_OTHER_DATA),
        Miner("forward only", trains=False),
    ]


@dataclass(frozen=True, slots=True)
class Rig:
    """A run and the text that is trained on."""

    manifest: RunManifest
    text: np.ndarray  # uint8

    def model(self) -> nn.Module:
        return build_model(self.manifest.model.config, 7)

    def random(self) -> State:
        """The state of round 0, and how many rounds were applied."""
        return to_flat(self.model()), 0

    def warm(self, rounds: int, steps: int) -> State:
        """After so many rounds of one miner alone, on a text of its own."""
        torch.set_num_threads(1)
        state, loop, data = to_flat(self.model()), InnerLoop(self.model(), self.manifest), self.batches(_WARM_DATA)
        applied = 0
        for _ in range(rounds):
            state = _run(loop, state, data, applied, steps, sketched=False).end
            applied += max(1, steps // self.manifest.inner.nominal_steps)
        return state, applied

    def log(self, miner: Miner, state: State, steps: int, *, seed: int = 0) -> InnerResult:
        """What `miner` commits to after its first `steps` steps from `state`: (parameters, applied rounds)."""
        torch.set_num_threads(miner.threads)
        model, size = self.model(), self.manifest.data.batch_size
        for parameter in _of_blocks(model, miner.frozen_blocks):
            parameter.register_hook(torch.zeros_like)
        manifest = self.manifest if miner.trains else _without_steps(self.manifest)
        loop = InnerLoop(model, manifest, precision=miner.precision, micro_batch=miner.micro_batch)
        data = (batch[: miner.batch] for batch in self.batches(miner.data + 10 * seed))
        made = _run(loop, state[0], data, state[1], steps, sketched=True)
        torch.set_num_threads(1)
        records = made.steps if miner.trains else tuple(map(_invented, made.steps))
        return InnerResult(made.end, tuple(_claiming(record, size) for record in records))

    def batches(self, seed: int) -> Iterator[Tokens]:
        """Endless int64 [BS, T] from random places."""
        data, rng = self.manifest.data, np.random.default_rng(seed)
        while True:
            starts = rng.integers(len(self.text) - data.sequence_length, size=data.batch_size)
            yield np.stack([self.text[at : at + data.sequence_length] for at in starts]).astype(np.int64)


def rig(
    preset: str, optimizer: str | None, layers: int, width: int, length: int, overrides: Sequence[Mapping[str, Any]]
) -> Rig:
    """A preset's run with a GPT-2 of this size over bytes, 8 sequences a step. `optimizer` None: the preset's."""
    model = {"model_type": "gpt2", "vocab_size": 257, "n_positions": length, "n_embd": width, "n_layer": layers}
    chosen: dict[str, Any] = {"data": {"sequence_length": length, "batch_size": 8}}
    if optimizer is not None:
        chosen["inner"] = {"optimizer": optimizer}
    manifest = draft_manifest(preset, model | {"n_head": 4}, None, merge(chosen, *overrides))
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return Rig(manifest, np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8))


def _run(
    loop: InnerLoop, start: Flat, data: Iterator[Tokens], applied: int, steps: int, *, sketched: bool
) -> InnerResult:
    seed = _SEED if sketched else None
    return loop.run(start, data, applied_rounds=applied, sketch_seed=seed, max_steps=steps, should_stop=lambda: False)


def _of_blocks(model: nn.Module, count: int) -> Iterator[nn.Parameter]:
    """Parameters of the first `count` blocks."""
    stop = next(g for g in groups(model) if g.name == f"block {count}").start
    start = groups(model)[1].start if count else stop
    position = 0
    for _, parameter in trained(model):
        if start <= position < stop:
            yield parameter
        position += parameter.numel()


def _without_steps(manifest: RunManifest) -> RunManifest:
    inner = manifest.inner.model_copy(update={"learning_rate": 1e-30})
    return manifest.model_copy(update={"inner": inner})


def _invented(record: StepRecord) -> StepRecord:
    """Its numbers in another order."""
    rng = np.random.default_rng(record.step)
    return replace(record, sketch=tuple(tuple(rng.permuted(row).tolist()) for row in record.sketch))


def _claiming(record: StepRecord, size: int) -> StepRecord:
    """With the mean loss for the sequences that were not computed."""
    missing = size - len(record.losses)
    return dataclasses.replace(record, losses=(*record.losses, *[float(np.mean(record.losses))] * missing))
