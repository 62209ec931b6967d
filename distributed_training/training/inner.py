"""The inner loop: steps from a public state over given batches, logging what an auditor can replay.

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
from distributed_training.protocol.types import StepRecord
from distributed_training.training.device import Precision, chosen_precision, device_faults
from distributed_training.training.device_sketch import DeviceSketcher
from distributed_training.training.flat import (
    Flat,
    add_flat,
    bind_flat_gradient,
    groups,
    load_flat,
    to_flat,
    trained,
)
from distributed_training.training.losses import SequenceLosses, recompute_blocks
from distributed_training.training.optimizers import build
from distributed_training.training.step_log import StepLog, flat_norm
from distributed_training.training.team import Alone, Head, Team

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InnerResult:
    """Parameters after the last step, float32 [d], and one record per step done."""

    end: Flat
    steps: tuple[StepRecord, ...]
    shifted_at: int | None = None  # steps done before the parameters were shifted; None: they were not


class InnerLoop:
    """Owns the model and its optimizer; the state a run starts from is an argument of `run`.

    On the CPU with one thread the same inputs give the same bytes. With bf16 the forward pass runs in autocast;
    parameters, gradients and moments stay float32. `team`: the processes that share each batch; default this one.
    These change memory, speed and rounding, nothing else: `micro_batch` sequences go through the model at a time;
    `compiled` by torch.compile; `recompute`: the backward pass computes each block again instead of keeping it.

    On an accelerator a step waits for nothing: it is put into the device's queue, and its numbers come later (StepLog).
    """

    def __init__(
        self,
        model: nn.Module,
        manifest: RunManifest,
        device: str = "cpu",
        micro_batch: int | None = None,
        team: Team | None = None,
        *,
        precision: Precision = "auto",
        compiled: bool = False,
        recompute: bool = False,
    ) -> None:
        """Raises ConfigError for a precision that the device has not."""
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"expected micro_batch >= 1, got {micro_batch}")
        self.groups = groups(model)
        self.device = torch.device(device)
        with device_faults(self.device.type):
            self.model = model.to(device)
        self._inner = manifest.inner
        self._sketch_size = manifest.audit.sketch_size
        self.team: Team = team or Alone()
        self.batch_size, self._micro_batch = manifest.data.batch_size // self.team.size, micro_batch
        self._gradient = bind_flat_gradient(self.model)
        self._parameters = [parameter for _, parameter in trained(self.model)]
        self._optimizer = build(manifest.inner, self.model, self.team.divide(self._parameters))
        self.precision = chosen_precision(device, precision)
        self.recompute = recompute
        if recompute:
            recompute_blocks(self.model)
        self.compiled = compiled

    def run(
        self,
        start: Flat | None,
        batches: Iterator[Tokens],
        *,
        applied_rounds: int,
        sketch_seed: bytes | None,
        max_steps: int,
        should_stop: Callable[[], bool],
        on_step: Callable[[StepRecord, float], None] | None = None,
        fresh_moments: bool = True,
        shift: Callable[[int], Flat | None] = lambda step: None,
    ) -> InnerResult:
        """Train from `start` (float32 [d]; None: from rank 0's) on int64 batches [BS, T] for at most `max_steps` steps.

        Ends early when `should_stop()` is true before a step or the batches run out. `on_step` receives each record
        and the seconds its step took, on an accelerator up to half a second of steps later. Without a `sketch_seed`
        nothing is sketched and records are no log. `fresh_moments=False` keeps the optimiser's moments of the former
        run: for baselines, the protocol never does. `shift` is asked before each step, with its number, until it gives
        float32 [d] to add to the parameters there; the optimiser's moments stay as they are. Raises LocalFault when
        the loss or the gradient is no longer finite, DeviceLost when the accelerator fails; what `batches` raises goes
        through.
        """
        with device_faults(self.device.type):
            if start is not None:
                load_flat(self.model, start)
            if fresh_moments:
                self._optimizer.reset()
            log = StepLog(self._sketcher(sketch_seed), on_step, in_bursts=self.device.type != "cpu")
            head = Head(applied_rounds, fresh_moments, self.micro_batch, self.compiled, self.precision == "bf16")
            shifted_at: int | None = None
            with self.team.round(head, self._parameters, batches) as shares:
                for step in range(max_steps):
                    if should_stop():
                        break
                    if shifted_at is None and (moved := shift(step)) is not None:
                        add_flat(self.model, moved)
                        self.team.shifted(self._parameters)
                        shifted_at = step
                    if (batch := next(shares, None)) is None:
                        break
                    rate = inner_learning_rate(self._inner, applied_rounds, step, fresh_moments=fresh_moments)
                    self._step(batch, step, rate, log)
                log.flush()
            return InnerResult(to_flat(self.model), tuple(log.records), shifted_at)

    def shrink(self) -> bool:
        """After running out of memory: let go of what the last run held and halve the micro-batch.

        False when a single sequence at a time is too much already. Gradients are accumulated over micro-batches, so
        a later run differs by rounding only.
        """
        self._optimizer.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        size = self.micro_batch
        self._micro_batch = max(1, size // 2)
        return size > 1

    @property
    def micro_batch(self) -> int:
        """Sequences that go through the model at a time."""
        return self._micro_batch or self.batch_size

    @micro_batch.setter
    def micro_batch(self, size: int) -> None:
        self._micro_batch = size

    @property
    def compiled(self) -> bool:
        return self._compiled

    @compiled.setter
    def compiled(self, wanted: bool) -> None:
        self._compiled = wanted
        wrap = torch.compile if wanted else lambda module: module
        self.losses = SequenceLosses(self.model, self._autocast, wrap=wrap)

    def evaluate(
        self, flat: Flat, sequences: Tokens, batch_size: int, should_stop: Callable[[], bool] = lambda: False
    ) -> float:
        """Mean loss of the parameters `flat` over int64 sequences [n, T], nats per token.

        Raises LocalFault when `should_stop()` turns true between two batches: part of a mean is not measured, and
        DeviceLost when the accelerator fails.
        """
        batch_size = min(batch_size, self._micro_batch or batch_size)
        total = 0.0
        with device_faults(self.device.type):
            load_flat(self.model, flat)
            for first in range(0, len(sequences), batch_size):
                if should_stop():
                    raise LocalFault("the evaluation was stopped")
                losses = self.losses.forward(self._tokens(sequences[first : first + batch_size]))
                total += float(losses.cpu().double().sum())
        return total / len(sequences)

    def _step(self, batch: Tokens, step: int, learning_rate: float, log: StepLog) -> None:
        began = time.perf_counter()
        with self.team.attempt():
            share = self._backward(batch)
        gradient = self._gradient
        losses = self.team.sum(gradient, share)
        norm = flat_norm(gradient)
        with self.team.attempt():
            log.note(step, began, losses, norm, gradient)
            gradient.mul_((self._inner.clip_norm / norm).clamp(max=1.0))
            self._optimizer.step(learning_rate)
        self.team.give(self._parameters)
        log.end_step()

    def _backward(self, batch: Tokens) -> torch.Tensor:
        """Leave this share's part of the gradient of the mean loss in the flat gradient; float32 losses [share]."""
        self._gradient.zero_()
        tokens = self._tokens(batch)
        each = 1.0 / (len(tokens) * self.team.size)
        return torch.cat([self.losses.backward(part, each) for part in tokens.split(self.micro_batch)])

    def _tokens(self, batch: Tokens) -> torch.Tensor:
        """On the device; a copy from pinned memory is waited for by nobody."""
        tokens = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.int64))
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return tokens.to(self.device, non_blocking=True)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _sketcher(self, seed: bytes | None) -> DeviceSketcher | None:
        return None if seed is None else DeviceSketcher(seed, self.groups, self._sketch_size, self.device)
