"""Scales of blocks whose codes are whole numbers up to a largest one: what int8 and int4 share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import Vector
from distributed_training.errors import WireError

# Blocks smaller than this are encoded as zero: no scale is subnormal, whatever the CPU's flush mode.
SMALLEST_SCALE = np.float32(1e-30)
# Larger values saturate: no decoded number, sum or norm overflows fp32.
LARGEST_SCALE = np.float32(1e30)


def scales_of(peaks: Vector, largest_code: int) -> Vector:
    """One for each block's largest magnitude. Raises ValueError for a magnitude that is not finite."""
    if not np.isfinite(peaks).all():
        raise ValueError("cannot encode a non-finite number")
    scales = np.minimum(peaks / np.float32(largest_code), LARGEST_SCALE)
    scales[scales < SMALLEST_SCALE] = 0
    return scales


def check_range(scales: Vector, chunk: int) -> NDArray[np.bool_]:
    """Which of them are zero. Raises WireError unless each is +0 or a number that a block of some codec can have."""
    zero = scales.view(np.uint32) == 0  # by its bits: -0.0 is refused
    if not (zero | ((scales >= SMALLEST_SCALE) & (scales <= LARGEST_SCALE))).all():
        raise WireError(f"chunk {chunk}: a scale is negative, too small, too large or not finite")
    return zero


def check_quotients(scales: Vector, largest_code: int, chunk: int) -> None:
    """Exactly the quotients absmax / largest code pass (tests try all mantissas). Raises WireError for others."""
    if (scales * np.float32(largest_code) / np.float32(largest_code) != scales).any():
        raise WireError(f"chunk {chunk}: a scale that no block has")
