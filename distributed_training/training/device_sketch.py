"""The gradient sketch computed where the gradient is, so that a step moves a few kilobytes off the accelerator."""

from __future__ import annotations

import torch
from torch.nn import functional

from distributed_training.protocol.rules.sketch import COEFFICIENT_RMS, GroupSketcher, Sketch, round_fp16


class DeviceSketcher:
    """The same map as GroupSketcher, over a tensor; equal up to the order of summation."""

    def __init__(self, sketcher: GroupSketcher, device: torch.device) -> None:
        self._groups = sketcher.groups
        self._coefficients = [torch.from_numpy(rows).to(device) for rows in sketcher.coefficients]

    def sketch(self, flat: torch.Tensor) -> Sketch:
        """[group][coordinate] of a float32 tensor [d] on this device, as fp16 values."""
        sums = [
            _column_sums(flat[group.start : group.stop], rows)
            for group, rows in zip(self._groups, self._coefficients, strict=True)
        ]
        values = (torch.stack(sums) / COEFFICIENT_RMS).cpu().numpy()
        return tuple(round_fp16(row) for row in values)


def _column_sums(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(values, (0, rows.numel() - values.numel())).view(rows.shape)
    return (padded * rows).sum(dim=0, dtype=torch.float64)
