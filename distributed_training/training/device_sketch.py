"""The gradient sketch of protocol section 5, computed where the gradient is and left there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from distributed_training.protocol.rules.sketch import COEFFICIENT_RMS, ParameterGroup, coefficients

_ROWS = 64  # added side by side, in float32, before float64
_CACHED = 1 << 16  # numbers multiplied at a time on a CPU: the products stay in its cache
_AT_ONCE = 1 << 26  # elsewhere


def wide(device: torch.device) -> torch.dtype:
    """The widest type of numbers that a device computes with: float64, but for Apple's GPU."""
    return torch.float32 if device.type == "mps" else torch.float64


class DeviceSketcher:
    """Sketches of vectors [d] under one seed; the coefficients are drawn once, 2 bytes a parameter on the device.

    `groups` are ranges of the vector, `size` the numbers per group. The seed may have any length. Equal to the plain
    sum up to the order of summation, which is float32 in blocks, then float64.
    """

    def __init__(self, seed: bytes, groups: Sequence[ParameterGroup], size: int, device: torch.device) -> None:
        if size < 1 or any(group.stop <= group.start for group in groups):
            raise ValueError("expected size >= 1 and groups that are not empty")
        self.groups, self._size = tuple(groups), size
        self.length = len(self.groups) * size
        at_once = _CACHED if device.type == "cpu" else _AT_ONCE
        self._block = max(1, at_once // (_ROWS * size)) * _ROWS * size
        self._coefficients = [
            torch.from_numpy(coefficients(seed, index, group.stop - group.start, size)).to(device).view(-1)
            for index, group in enumerate(self.groups)
        ]

    def sketch(self, flat: torch.Tensor) -> torch.Tensor:
        """[group, coordinate] of a float32 tensor [d] on this device, of its widest type, not yet rounded."""
        pairs = zip(self.groups, self._coefficients, strict=True)
        return torch.stack([self._sums(flat[g.start : g.stop], row) for g, row in pairs]) / COEFFICIENT_RMS

    def _sums(self, values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(self._size, dtype=wide(values.device), device=values.device)
        for first in range(0, values.numel(), self._block):
            part = values[first : first + self._block]
            products = part * row[first : first + part.numel()]
            full = products.numel() // (_ROWS * self._size) * _ROWS * self._size
            side_by_side = products[:full].view(-1, _ROWS * self._size).sum(dim=0)
            rest = functional.pad(products[full:], (0, -(products.numel() - full) % self._size))
            for rows in (side_by_side, rest):
                total += rows.view(-1, self._size).sum(dim=0, dtype=total.dtype)
        return total
