"""The int8 codec: per block of coordinates one fp32 scale (absmax / 127) and one signed byte each.

A chunk is encoded as its scales (`<f4`, one per block) followed by its values (`i1`). Encoding and decoding are
plain IEEE operations in numpy, so every machine gets the same bytes (protocol section 1, invariant 2).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import Layout, Vector
from distributed_training.errors import WireError

INT8_CODEC = 1
# Blocks smaller than this are encoded as zero: no scale is subnormal, whatever the CPU's flush mode.
_SMALLEST_SCALE = np.float32(1e-30)
# Larger values saturate: no decoded number, sum or norm overflows fp32.
_LARGEST_SCALE = np.float32(1e30)


def encode_chunk(values: Vector, layout: Layout) -> bytes:
    """values: fp32 [n] of one chunk, finite. Returns its canonical bytes; beyond +-127e30 values saturate."""
    if not np.isfinite(values).all():
        raise ValueError("cannot encode a non-finite number")
    size = layout.block_coords
    blocks = -(-len(values) // size)
    padded = np.zeros(blocks * size, np.float32)
    padded[: len(values)] = values
    table = padded.reshape(blocks, size)
    scales = np.minimum(np.abs(table).max(axis=1) / np.float32(127), _LARGEST_SCALE)
    scales[scales < _SMALLEST_SCALE] = 0
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = np.rint(table / divisor[:, None])
    codes[scales == 0] = 0
    codes = np.clip(codes, -127, 127).astype(np.int8)
    return scales.astype("<f4").tobytes() + codes.reshape(-1)[: len(values)].tobytes()


def decode_chunk(data: bytes, layout: Layout, chunk: int) -> Vector:
    """Canonical bytes of chunk `chunk` to fp32 [n]. Raises WireError for anything `encode_chunk` cannot produce."""
    scales, codes = _parts(data, layout, chunk)
    expanded = np.repeat(scales, layout.block_coords)[: len(codes)]
    return codes.astype(np.float32) * expanded


def chunk_norm(data: bytes, layout: Layout, chunk: int) -> float:
    """Exact L2 norm of the decoded chunk, rounded once to fp32.

    Integer sums of squares per block, times scale squared (exact in float64), added with fsum: free of order.
    """
    scales, codes = _parts(data, layout, chunk)
    starts = np.arange(0, len(codes), layout.block_coords)
    sums = np.add.reduceat(codes.astype(np.int64) ** 2, starts)
    squares = sums.astype(np.float64) * scales.astype(np.float64) ** 2
    return float(np.float32(math.sqrt(math.fsum(squares.tolist()))))


def rounding_norm(data: bytes, layout: Layout, chunk: int) -> float:
    """How far, at most, encoding moved the vector: L2 norm of half a scale in every coordinate, in float64.

    `encode_chunk` rounds each coordinate to the nearest multiple of its block's scale; saturation and blocks that are
    encoded as zero only shorten. With b coordinates in a block at most sqrt(b) / 254 of the chunk's own norm, because
    every block that is not zero has a code of 127.
    """
    scales, codes = _parts(data, layout, chunk)
    sizes = np.full(len(scales), layout.block_coords, np.float64)
    sizes[-1] = len(codes) - layout.block_coords * (len(scales) - 1)
    halves = scales.astype(np.float64) / 2
    return math.sqrt(math.fsum((halves * halves * sizes).tolist()))


def _parts(data: bytes, layout: Layout, chunk: int) -> tuple[Vector, NDArray[np.int8]]:
    if len(data) != layout.chunk_bytes(chunk):
        raise WireError(f"chunk {chunk}: {len(data)} bytes, {layout.chunk_bytes(chunk)} expected")
    split = 4 * layout.num_blocks(chunk)
    scales = np.frombuffer(data[:split], "<f4").astype(np.float32)
    codes = np.frombuffer(data[split:], np.int8)
    zero = scales.view(np.uint32) == 0  # by its bits: -0.0 is refused
    if not (zero | ((scales >= _SMALLEST_SCALE) & (scales <= _LARGEST_SCALE))).all():
        raise WireError(f"chunk {chunk}: a scale is negative, too small, too large or not finite")
    if (scales * np.float32(127) / np.float32(127) != scales).any():  # all quotients absmax / 127 pass, no others do
        raise WireError(f"chunk {chunk}: a scale that no block has")
    if (codes == -128).any():
        raise WireError(f"chunk {chunk}: code -128")
    peaks = np.maximum.reduceat(np.abs(codes), np.arange(0, len(codes), layout.block_coords))
    if (peaks != np.where(zero, 0, 127)).any():
        raise WireError(f"chunk {chunk}: the largest code of a block is not 127, or not 0 under a zero scale")
    return scales, codes
