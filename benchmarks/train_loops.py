"""The loops that `benchmarks.train` compares.

Legend: BS sequences a step; T tokens a sequence; d parameters.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distributed_training.protocol.manifest import RunManifest
from distributed_training.recipes.build import draft_manifest
from distributed_training.training.device import free_bytes
from distributed_training.training.flat import num_parameters, to_flat, trained
from distributed_training.training.inner import InnerLoop, Tokens
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import build
from distributed_training.training.prepare import prepare
from distributed_training.training.speed import flop_per_s

_LOCAL = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 256, "n_embd": 128, "n_layer": 4, "n_head": 4}
_124M = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
_350M = _124M | {"n_embd": 1024, "n_layer": 24, "n_head": 16}
_RATE = 1e-4


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    recipe: str
    model: dict[str, Any]
    batch_size: int
    length: int
    optimizer: str
    pairs: int
    choices: dict[str, Any] = field(default_factory=dict)  # of the inner loop

    @property
    def tokens(self) -> int:
        return self.batch_size * self.length

    def manifest(self) -> RunManifest:
        data = {"sequence_length": self.length, "batch_size": self.batch_size}
        return draft_manifest(
            self.recipe, self.model, None, {"netuid": 1, "data": data, "inner": {"optimizer": self.optimizer}}
        )

    def batches(self) -> Iterator[Tokens]:
        rng = np.random.default_rng(0)
        while True:
            yield rng.integers(257, size=(self.batch_size, self.length))


CASES = {
    case.name: case
    for case in (
        Case("local", "local", _LOCAL, 8, 256, "adamw", 20),
        Case("local-muon", "local", _LOCAL, 8, 256, "muon", 20),
        Case("124m", "gpt2-124m", _124M, 4, 128, "adamw", 6),
    )
}


@dataclass(frozen=True, slots=True)
class Paired:
    ours_tokens_per_cpu_s: float
    bare_tokens_per_cpu_s: float
    ratio: float
    round_cpu_s: float


class Bare:
    """The same step with the plain loss, no log, and gradients that come and go."""

    def __init__(self, case: Case, manifest: RunManifest) -> None:
        self._model = build_model(case.model, 1)
        for _, parameter in trained(self._model):
            parameter.grad = torch.zeros_like(parameter)
        self._parameters = [parameter for _, parameter in trained(self._model)]
        self._optimizer = build(manifest.inner, self._model)
        self._clip_norm, self._batches = manifest.inner.clip_norm, case.batches()

    def step(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        tokens = torch.from_numpy(next(self._batches))
        logits = self._model(input_ids=tokens, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimizer.step(_RATE)
        assert math.isfinite(loss.item())


def paired(case: Case, pairs: int) -> Paired:
    """Ours and bare in turn: the bare step is taken where ours asks whether to stop. The first pair is not counted."""
    manifest = case.manifest()
    bare = Bare(case, manifest)
    loop = InnerLoop(build_model(case.model, 1), manifest, **case.choices)
    start, ours, theirs = to_flat(loop.model), list[float](), list[float]()
    marks = [time.process_time()]

    def in_turn() -> bool:
        now = time.process_time()
        bare.step()
        marks.append(time.process_time())
        theirs.append(marks[-1] - now)
        return len(theirs) > pairs + 1

    began = time.process_time()
    _run(case, loop, start, pairs + 1, in_turn, lambda: ours.append(time.process_time() - marks[-1]))
    around = time.process_time() - began - sum(ours) - sum(theirs)
    ours, theirs = ours[1:], theirs[1 : pairs + 1]
    return Paired(
        case.tokens / statistics.median(ours),
        case.tokens / statistics.median(theirs),
        statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        around,
    )


def peak_mb(case: Case, ours: bool) -> float:
    """Of this process, which does nothing else."""
    torch.set_num_threads(1)
    manifest = case.manifest()
    if ours:
        loop = InnerLoop(build_model(case.model, 1), manifest, **case.choices)
        _run(case, loop, to_flat(loop.model), 2, lambda: False, lambda: None)
    else:
        bare = Bare(case, manifest)
        bare.step()
        bare.step()
    # Not ru_maxrss, which begins with what the parent had.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1000


def trainer_tokens_per_cpu_s(case: Case, steps: int) -> float | None:
    """transformers' Trainer on the same model with its fused AdamW; None without accelerate, or for Muon."""
    if importlib.util.find_spec("accelerate") is None or case.optimizer != "adamw":
        return None
    from transformers import Trainer, TrainerCallback, TrainingArguments

    batches, stamps = case.batches(), list[float]()
    rows = [row for _ in range(steps + 1) for row in next(batches)]

    class Stamps(TrainerCallback):
        def on_step_end(self, *given: Any, **more: Any) -> None:
            stamps.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=case.batch_size,
            max_steps=steps + 1,
            optim="adamw_torch_fused",
            learning_rate=_RATE,
            max_grad_norm=1.0,
            use_cpu=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data: Any = [{"input_ids": row, "labels": row} for row in rows]
        model: Any = build_model(case.model, 1)
        Trainer(model, arguments, train_dataset=data, callbacks=[Stamps()]).train()
    return case.tokens / statistics.median(after - before for before, after in pairwise(stamps))


@dataclass(frozen=True, slots=True)
class OnGpu:
    manner: str
    tokens_per_s: float
    mfu: float
    peak_mb: float


def gpu_cases() -> list[Case]:
    """A whole step of the recipe, compiled and not."""
    return [
        Case(f"{name}{', compiled' * compiled}", f"gpt2-{name}", model, 128, 1024, "muon", 20, {"compiled": compiled})
        for name, model in (("124m", _124M), ("350m", _350M))
        for compiled in (False, True)
    ]


def timed_on_gpu(case: Case) -> OnGpu:
    """Six operations a parameter and token, and the attention's; against products of this GPU, measured."""
    loop = InnerLoop(build_model(case.model, 1), case.manifest(), "cuda", **case.choices)
    manner = prepare(loop, case.length, free_bytes("cuda"))
    torch.cuda.reset_peak_memory_stats()
    stamps: list[float] = []
    _run(case, loop, to_flat(loop.model), case.pairs, lambda: False, lambda: stamps.append(time.perf_counter()))
    # Records come in bursts: steps after the first burst, over the time from there to the last one.
    first = stamps[0]
    seconds = (stamps[-1] - first) / sum(stamp > first for stamp in stamps)
    layers, width = case.model["n_layer"], case.model["n_embd"]
    flop = case.tokens * (6 * num_parameters(loop.model) + 12 * layers * width * case.length)
    peak = torch.cuda.max_memory_allocated() / 1e6
    return OnGpu(manner, case.tokens / seconds, flop / seconds / flop_per_s("cuda"), peak)


def _run(
    case: Case,
    loop: InnerLoop,
    start: np.ndarray,
    steps: int,
    should_stop: Callable[[], bool],
    stepped: Callable[[], None],
) -> None:
    loop.run(
        start,
        case.batches(),
        applied_rounds=0,
        sketch_seed=bytes(32),
        max_steps=steps,
        should_stop=should_stop,
        on_step=lambda record, seconds: stepped(),
    )
