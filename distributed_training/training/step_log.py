"""What of a step leaves the device: losses, gradient norm and sketch, of several steps at a time.

Reading one number waits for all that the device was given to do; a step that is only put into its queue costs it no
pause. So the numbers of some steps wait there, and come together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from distributed_training.errors import LocalFault
from distributed_training.protocol.rules.sketch import Sketch, round_fp16
from distributed_training.protocol.types import StepRecord
from distributed_training.training.device_sketch import DeviceSketcher, wide

MOST = 16  # steps that wait at most
MOST_S = 0.5  # of the device's time that they take: whoever stops a run, or looks at its records, waits that long more
_BLOCK = 1 << 16  # numbers whose squares are summed in float32


class _Waiting(NamedTuple):
    step: int
    began: float  # time.perf_counter()
    numbers: torch.Tensor  # [1 + BS + sketch]: norm, losses, sketch


class StepLog:
    """The records of one run, in order. `on_step` gets each, and the seconds of its step, once it has left the device:
    at once, or in bursts from one that has a queue. Without a sketcher nothing is sketched."""

    def __init__(
        self,
        sketcher: DeviceSketcher | None,
        on_step: Callable[[StepRecord, float], None] | None,
        *,
        in_bursts: bool,
    ) -> None:
        self.records: list[StepRecord] = []
        self._sketcher, self._on_step, self._in_bursts = sketcher, on_step, in_bursts
        self._waiting: list[_Waiting] = []
        self._burst = 1  # the first step tells how long they take

    def note(self, step: int, began: float, losses: torch.Tensor, norm: torch.Tensor, gradient: torch.Tensor) -> None:
        """Losses float32 [BS], the norm of the gradient and the gradient itself, float32 [d], not clipped."""
        numbers = [norm.view(1), losses.to(norm.dtype)]
        if self._sketcher is not None:
            numbers.append(self._sketcher.sketch(gradient).flatten())
        self._waiting.append(_Waiting(step, began, torch.cat(numbers)))

    def end_step(self) -> None:
        """All of this step was handed to the device. Raises as `flush`."""
        if len(self._waiting) >= self._burst:
            self.flush()

    def flush(self) -> None:
        """Wait for all steps. Raises LocalFault for the first whose loss or gradient is not finite: it and those after
        it are no work."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = torch.stack([each.numbers for each in waiting]).cpu()
        seconds = (time.perf_counter() - waiting[0].began) / len(waiting)
        if self._in_bursts:
            self._burst = max(1, min(MOST, int(MOST_S / seconds)))
        for each, row in zip(waiting, rows, strict=True):
            self._report(each.step, row, seconds)

    def _report(self, step: int, row: torch.Tensor, seconds: float) -> None:
        size = 0 if self._sketcher is None else self._sketcher.length
        count = len(row) - 1 - size
        if not torch.isfinite(row[: 1 + count]).all():
            raise LocalFault(f"training diverged: loss or gradient of inner step {step} is not finite")
        sketch: Sketch = ()
        if self._sketcher is not None:
            sketch = tuple(round_fp16(line) for line in row[1 + count :].view(len(self._sketcher.groups), -1).numpy())
        losses = round_fp16(row[1 : 1 + count].float().numpy())
        record = StepRecord(step, losses, float(row[0].float()), sketch)
        self.records.append(record)
        if self._on_step is not None:
            self._on_step(record, seconds)


def flat_norm(flat: torch.Tensor) -> torch.Tensor:
    """L2 norm of float32 [d], of the widest type its device has, left there: float32 within a block, then that type."""
    full = flat.numel() // _BLOCK * _BLOCK
    parts = torch.linalg.vector_norm(flat[:full].view(-1, _BLOCK), dim=1)
    rest = torch.linalg.vector_norm(flat[full:]).view(1)
    return torch.linalg.vector_norm(torch.cat([parts, rest]).to(wide(flat.device)))
