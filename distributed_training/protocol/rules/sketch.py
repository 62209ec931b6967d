"""Seeded linear sketches of a flat vector, one per parameter group (protocol section 5).

A group is read as rows of `size` numbers, zero padded; row times coefficient row, summed down the columns in
float64, gives `size` numbers. Coefficients are the odd integers 2u - 255 of a blake3 byte stream u, never a library's
random generator, so every platform draws the same. They are divided by sqrt(21845), their root mean square, so the
expected squared norm of a sketch is the squared norm of its group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

Sketch = tuple[tuple[float, ...], ...]

COEFFICIENT_RMS = math.sqrt(21845.0)  # of the odd integers -255 .. 255: sqrt((256^2 - 1) / 3)
_DOMAIN = b"distributed-training/sketch/1"
_FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Coordinates [start, stop) of the flat vector under one name."""

    name: str
    start: int
    stop: int


def round_fp16(values: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """The nearest fp16 values, clipped to finite fp16; NaN stays NaN."""
    return tuple(np.clip(values, -_FP16_MAX, _FP16_MAX).astype(np.float16).tolist())


def coefficients(seed: bytes, index: int, length: int, size: int) -> npt.NDArray[np.int16]:
    """Of group `index` with `length` numbers: int16 [rows, size] of odd integers in -255 .. 255. The
    padding of the last row has coefficients too, unused."""
    rows = -(-length // size)
    stream = blake3(_DOMAIN + len(seed).to_bytes(4, "little") + seed + index.to_bytes(4, "little"))
    raw = np.frombuffer(stream.digest(length=rows * size), dtype=np.uint8).astype(np.int16)
    return (2 * raw - 255).reshape(rows, size)
