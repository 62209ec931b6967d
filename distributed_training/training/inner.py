"""The inner loop: AdamW from a public state over given batches, logging what an auditor can replay.

Legend: d parameters; BS sequences a step; T tokens a sequence. Losses are nats, norms are L2.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from distributed_training.errors import LocalFault
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.schedules import inner_learning_rate
from distributed_training.protocol.rules.sketch import GroupSketcher, Sketch, round_fp16
from distributed_training.protocol.types import StepRecord
from distributed_training.training.device import device_faults
from distributed_training.training.device_sketch import DeviceSketcher
from distributed_training.training.flat import (
    Flat,
    bind_flat_gradient,
    groups,
    load_flat,
    loss_per_sequence,
    to_flat,
    trained,
)

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InnerResult:
    """Parameters after the last step, float32 [d], and one record per step done."""

    end: Flat
    steps: tuple[StepRecord, ...]


class InnerLoop:
    """Owns the model and its optimizer; the state a run starts from is an argument of `run`.

    On the CPU with one thread the same inputs give the same bytes. On CUDA the forward pass runs in bfloat16
    autocast; parameters, gradients and moments stay float32. `micro_batch` sequences go through the model at a
    time; it changes memory and rounding, nothing else.
    """

    def __init__(
        self, model: nn.Module, manifest: RunManifest, device: str = "cpu", micro_batch: int | None = None
    ) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"expected micro_batch >= 1, got {micro_batch}")
        self.groups = groups(model)
        self._device = torch.device(device)
        with device_faults(self._device.type):
            self._model = model.to(device)
        self._inner = manifest.inner
        self._sketch_size = manifest.audit.sketch_size
        self._batch_size, self._micro_batch = manifest.data.batch_size, micro_batch
        self._gradient = bind_flat_gradient(self._model)
        self._optimizer = self._new_optimizer()

    def run(
        self,
        start: Flat,
        batches: Iterator[Tokens],
        *,
        applied_rounds: int,
        sketch_seed: bytes | None,
        max_steps: int,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepRecord, float], None] | None = None,
        fresh_moments: bool = True,
    ) -> InnerResult:
        """Train from `start` (float32 [d]) on int64 batches [BS, T] for at most `max_steps` steps.

        Ends early when `should_stop()` is true before a step or the batches run out. `on_step` receives each
        record and the seconds its step took. Without a `sketch_seed` nothing is sketched and records are no log.
        `fresh_moments=False` keeps AdamW's moments of the former run: for baselines, the protocol never does.
        Raises LocalFault when the loss or the gradient is no longer finite, DeviceLost when the accelerator fails; what
        `batches` raises goes through.
        """
        with device_faults(self._device.type):
            load_flat(self._model, start)
            if fresh_moments:
                self._optimizer = self._new_optimizer()
            sketch = self._sketcher(sketch_seed)
            records: list[StepRecord] = []
            for step in range(max_steps):
                if should_stop():
                    break
                batch = next(batches, None)
                if batch is None:
                    break
                began = time.perf_counter()
                rate = inner_learning_rate(self._inner, applied_rounds, step, fresh_moments=fresh_moments)
                record = self._step(batch, step, rate, sketch)
                records.append(record)
                if on_step is not None:
                    on_step(record, time.perf_counter() - began)
            return InnerResult(to_flat(self._model), tuple(records))

    def shrink(self) -> bool:
        """After running out of memory: let go of what the last run held and halve the micro-batch.

        False when a single sequence at a time is too much already. Gradients are accumulated over micro-batches, so
        a later run differs by rounding only.
        """
        self._optimizer = self._new_optimizer()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        size = self.micro_batch
        self._micro_batch = max(1, size // 2)
        return size > 1

    @property
    def micro_batch(self) -> int:
        """Sequences that go through the model at a time."""
        return self._micro_batch or self._batch_size

    def evaluate(
        self, flat: Flat, sequences: Tokens, batch_size: int, should_stop: Callable[[], bool] = lambda: False
    ) -> float:
        """Mean loss of the parameters `flat` over int64 sequences [n, T], nats per token.

        Raises LocalFault when `should_stop()` turns true between two batches: part of a mean is not measured, and
        DeviceLost when the accelerator fails.
        """
        batch_size = min(batch_size, self._micro_batch or batch_size)
        total = 0.0
        with device_faults(self._device.type), torch.no_grad(), self._precision():
            load_flat(self._model, flat)
            for first in range(0, len(sequences), batch_size):
                if should_stop():
                    raise LocalFault("the evaluation was stopped")
                losses = loss_per_sequence(self._model, self._tokens(sequences[first : first + batch_size]))
                total += float(losses.cpu().double().sum())
        return total / len(sequences)

    def _step(
        self, batch: Tokens, step: int, learning_rate: float, sketch: Callable[[torch.Tensor], Sketch]
    ) -> StepRecord:
        losses = self._backward(batch)
        gradient = self._gradient if self._device.type == "cuda" else self._gradient.cpu()  # mps has no float64
        norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        if not (np.isfinite(norm) and np.isfinite(losses).all()):
            raise LocalFault(f"training diverged: loss or gradient of inner step {step} is not finite")
        record = StepRecord(step, round_fp16(losses), float(np.float32(norm)), sketch(self._gradient))
        if norm > self._inner.clip_norm:
            self._gradient.mul_(self._inner.clip_norm / norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        return record

    def _backward(self, batch: Tokens) -> npt.NDArray[np.float32]:
        """Leave the gradient of the batch's mean loss in the flat gradient; float32 losses [BS]."""
        self._gradient.zero_()
        tokens = self._tokens(batch)
        losses: list[torch.Tensor] = []
        for part in tokens.split(self._micro_batch or len(tokens)):
            with self._precision():
                loss = loss_per_sequence(self._model, part)
            (loss.sum() / len(tokens)).backward()
            losses.append(loss.detach())
        return torch.cat(losses).cpu().numpy()

    def _tokens(self, batch: Tokens) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64)).to(self._device)

    def _precision(self) -> AbstractContextManager[object]:
        cuda = self._device.type == "cuda"
        return torch.autocast("cuda", dtype=torch.bfloat16) if cuda else nullcontext()

    def _sketcher(self, seed: bytes | None) -> Callable[[torch.Tensor], Sketch]:
        if seed is None:
            return lambda gradient: ()
        sketcher = GroupSketcher(seed, self.groups, self._sketch_size)
        if self._device.type != "cuda":  # without float64
            return lambda gradient: sketcher.sketch(gradient.cpu().numpy())
        return DeviceSketcher(sketcher, self._device).sketch

    def _new_optimizer(self) -> torch.optim.AdamW:
        """AdamW with zero moments; only matrices decay, norms and biases do not."""
        inner = self._inner
        parameters = [parameter for _, parameter in trained(self._model)]
        decays = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": inner.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            decays, lr=inner.learning_rate, betas=(inner.beta1, inner.beta2), eps=inner.epsilon, fused=True
        )
