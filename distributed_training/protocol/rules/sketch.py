"""Seeded linear sketches of a flat vector, one per parameter group (protocol section 5).

A group is read as rows of `size` numbers, zero padded; row times coefficient row, summed down the columns in
float64, gives `size` numbers. Coefficients are the odd integers 2u - 255 of a blake3 byte stream u, never a library's
random generator, so every platform draws the same. They are divided by sqrt(21845), their root mean square, so the
expected squared norm of a sketch is the squared norm of its group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

Sketch = tuple[tuple[float, ...], ...]

COEFFICIENT_RMS = math.sqrt(21845.0)  # of the odd integers -255 .. 255: sqrt((256^2 - 1) / 3)
_DOMAIN = b"distributed-training/sketch/1"
_FP16_MAX = 65504.0
_BLOCK_NUMBERS = 1 << 16  # numbers multiplied at a time: the products stay in cache


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Coordinates [start, stop) of the flat vector under one name."""

    name: str
    start: int
    stop: int


class GroupSketcher:
    """Sketches of vectors [d] under one seed; the coefficients are drawn once (2 bytes a parameter).

    `groups` are ranges of the vector, `size` the numbers per group. The seed may have any length.
    """

    def __init__(self, seed: bytes, groups: Sequence[ParameterGroup], size: int) -> None:
        if size < 1 or any(group.stop <= group.start for group in groups):
            raise ValueError("expected size >= 1 and groups that are not empty")
        self.groups = tuple(groups)
        self.size = size
        self.coefficients = tuple(
            _coefficients(seed, index, group.stop - group.start, size) for index, group in enumerate(self.groups)
        )

    def sketch(self, flat: npt.NDArray[np.float32]) -> Sketch:
        """[group][coordinate] of float32 [d], as fp16 values; what fp16 cannot hold is clipped, NaN stays NaN."""
        return tuple(
            round_fp16(_column_sums(flat[group.start : group.stop], rows) / COEFFICIENT_RMS)
            for group, rows in zip(self.groups, self.coefficients, strict=True)
        )


def round_fp16(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """The nearest fp16 values, clipped to finite fp16; NaN stays NaN."""
    return tuple(np.clip(values, -_FP16_MAX, _FP16_MAX).astype(np.float16).tolist())


def _coefficients(seed: bytes, index: int, length: int, size: int) -> npt.NDArray[np.int16]:
    """int16 [rows, size] of odd integers in -255 .. 255; the padding of the last row has coefficients too, unused."""
    rows = -(-length // size)
    stream = blake3(_DOMAIN + len(seed).to_bytes(4, "little") + seed + index.to_bytes(4, "little"))
    raw = np.frombuffer(stream.digest(length=rows * size), dtype=np.uint8).astype(np.int16)
    return (2 * raw - 255).reshape(rows, size)


def _column_sums(values: npt.NDArray[np.float32], rows: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """sum over rows of values * coefficients, float64 [size]; `values` is one group, unpadded."""
    size = rows.shape[1]
    full = values.size // size
    matrix = values[: full * size].reshape(full, size)
    total = np.zeros(size, dtype=np.float64)
    step = max(1, _BLOCK_NUMBERS // size)
    for first in range(0, full, step):
        block = matrix[first : first + step] * rows[first : min(first + step, full)]
        total += block.sum(axis=0, dtype=np.float64)
    rest = values[full * size :]
    total[: rest.size] += rest.astype(np.float64) * rows[-1, : rest.size]
    return total
