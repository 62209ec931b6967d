"""What a vector that was encoded with feedback says of the work behind it, from what its sender shows of its buffers.

delta = decode(committed) + end - decay * start
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.codecs.base import Chunk, Vector

_ROUNDING = 2.0**-22  # of a coordinate's largest part: what is less may be rounding alone


@dataclass(frozen=True, slots=True)
class Kept:
    """What a sender's buffers hold for one chunk, fp32 [n]."""

    start: Vector | None  # as it is in the vector, decayed (`feedback.carried`); None: it began with nothing
    end: Vector


def implied(chunk: Chunk, kept: Kept) -> Vector:
    """What was added to the buffer's start, fp32 [n]; zero where it may be rounding alone, so that who adds nothing has
    nothing."""
    decoded, end = chunk.decode().astype(np.float64), kept.end.astype(np.float64)
    start = np.zeros_like(end) if kept.start is None else kept.start.astype(np.float64)
    found = decoded + end - start
    found[np.abs(found) <= _ROUNDING * np.maximum(np.maximum(np.abs(decoded), np.abs(end)), np.abs(start))] = 0
    return found.astype(np.float32)
