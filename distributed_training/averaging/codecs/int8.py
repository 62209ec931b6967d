"""The int8 codec: per block of coordinates one fp32 scale (absmax / 127) and one signed byte each.

A chunk is encoded as its scales (`<f4`, one per block) followed by its values (`i1`). Encoding and decoding are
plain IEEE operations in numpy, so every machine gets the same bytes (protocol section 1, invariant 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import Layout, Vector
from distributed_training.errors import WireError

INT8_CODEC = 1
# Blocks smaller than this are encoded as zero: no scale is subnormal, whatever the CPU's flush mode.
_SMALLEST_SCALE = np.float32(1e-30)
# Larger values saturate: no decoded number, sum or norm overflows fp32.
_LARGEST_SCALE = np.float32(1e30)


@dataclass(frozen=True, slots=True)
class Chunk:
    """An encoded chunk whose bytes are canonical: `encode_chunk` and `parse_chunk` make it, once, and whoever holds one
    checks nothing again."""

    data: bytes
    scales: Vector = field(compare=False, repr=False)  # one per block; a view of `data`, as the codes are
    codes: NDArray[np.int8] = field(compare=False, repr=False)
    block_coords: int

    def norm(self) -> float:
        """Exact L2 norm of the decoded chunk, rounded once to fp32.

        Sums of squared codes per block (whole numbers below 2^53), times scale squared (exact in float64), added with
        fsum: free of order.
        """
        squares = np.empty(len(self.scales), np.float64)
        for blocks, codes, _ in self._tables():
            squares[blocks] = np.einsum("ij,ij->i", codes, codes, dtype=np.float64, casting="unsafe")
        squares *= self.scales.astype(np.float64) ** 2
        return float(np.float32(math.sqrt(math.fsum(squares.tolist()))))

    def rounding_norm(self) -> float:
        """How far, at most, encoding moved the vector: L2 norm of half a scale in every coordinate, in float64.

        `encode_chunk` rounds each coordinate to the nearest multiple of its block's scale; saturation and blocks that
        are encoded as zero only shorten. With b coordinates in a block at most sqrt(b) / 254 of the chunk's own norm,
        because every block that is not zero has a code of 127.
        """
        sizes = np.full(len(self.scales), self.block_coords, np.float64)
        sizes[-1] = len(self.codes) - self.block_coords * (len(self.scales) - 1)
        halves = self.scales.astype(np.float64) / 2
        return math.sqrt(math.fsum((halves * halves * sizes).tolist()))

    def decode(self, out: Vector | None = None) -> Vector:
        """Its numbers, fp32 [n], in the first n of `out`, where that is given."""
        decoded = (np.empty(len(self.codes), np.float32) if out is None else out)[: len(self.codes)]
        for blocks, codes, coords in self._tables():
            np.multiply(codes, self.scales[blocks, None], out=decoded[coords].reshape(codes.shape))
        return decoded

    def _tables(self) -> list[tuple[slice, NDArray[np.int8], slice]]:
        """The whole blocks as one table and the short last one as another: (which blocks, codes, which coordinates)."""
        size, count = self.block_coords, len(self.codes)
        whole = count // size
        tables = [(slice(0, whole), self.codes[: whole * size].reshape(whole, size), slice(0, whole * size))]
        if count % size:
            tables.append((slice(whole, whole + 1), self.codes[whole * size :][None], slice(whole * size, count)))
        return tables


class Encoder:
    """Encodes the chunks of a vector one after the other in memory of its own: no chunk touches fresh pages."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        blocks = -(-min(layout.chunk_coords, layout.num_coords) // layout.block_coords)
        self._quotients = np.empty((blocks, layout.block_coords), np.float32)
        self._data = np.empty(4 * blocks + self._quotients.size, np.uint8)

    def encode(self, values: Vector) -> Chunk:
        """values: fp32 [n] of one chunk, finite. Its canonical bytes; beyond +-127e30 values saturate. Raises
        ValueError for a number that is not finite."""
        size, count = self._layout.block_coords, len(values)
        blocks, whole = -(-count // size), count // size
        quotients = self._quotients[:blocks]
        flat = quotients.reshape(-1)
        np.abs(values, out=flat[:count])
        flat[count:] = 0
        peaks = quotients.max(axis=1)
        if not np.isfinite(peaks).all():
            raise ValueError("cannot encode a non-finite number")
        scales = np.minimum(peaks / np.float32(127), _LARGEST_SCALE)
        scales[scales < _SMALLEST_SCALE] = 0
        divisor = np.where(scales == 0, np.float32(1), scales)[:, None]  # then what is left rounds to zero by itself
        np.divide(values[: whole * size].reshape(whole, size), divisor[:whole], out=quotients[:whole])
        np.divide(values[whole * size :], divisor[-1], out=flat[whole * size : count])
        np.rint(quotients, out=quotients)
        np.clip(quotients, -127, 127, out=quotients)
        data = self._data[: 4 * blocks + count]
        data[: 4 * blocks].view("<f4")[:] = scales
        np.copyto(data[4 * blocks :].view(np.int8), flat[:count], casting="unsafe")
        return _view(data.tobytes(), blocks, size)


def encode_chunk(values: Vector, layout: Layout) -> Chunk:
    """One chunk alone; as `Encoder.encode`."""
    return Encoder(layout).encode(values)


def parse_chunk(data: bytes, layout: Layout, chunk: int) -> Chunk:
    """The bytes of chunk `chunk`, from anywhere. Raises WireError for anything `encode_chunk` cannot produce."""
    if len(data) != layout.chunk_bytes(chunk):
        raise WireError(f"chunk {chunk}: {len(data)} bytes, {layout.chunk_bytes(chunk)} expected")
    parsed = _view(data, layout.num_blocks(chunk), layout.block_coords)
    scales, codes = parsed.scales, parsed.codes
    zero = scales.view(np.uint32) == 0  # by its bits: -0.0 is refused
    if not (zero | ((scales >= _SMALLEST_SCALE) & (scales <= _LARGEST_SCALE))).all():
        raise WireError(f"chunk {chunk}: a scale is negative, too small, too large or not finite")
    if (scales * np.float32(127) / np.float32(127) != scales).any():  # all quotients absmax / 127 pass, no others do
        raise WireError(f"chunk {chunk}: a scale that no block has")
    if codes.min() == -128:
        raise WireError(f"chunk {chunk}: code -128")
    peaks = np.maximum.reduceat(np.abs(codes), np.arange(0, len(codes), layout.block_coords))
    if (peaks != np.where(zero, 0, 127)).any():
        raise WireError(f"chunk {chunk}: the largest code of a block is not 127, or not 0 under a zero scale")
    return parsed


def _view(data: bytes, blocks: int, block_coords: int) -> Chunk:
    scales = np.frombuffer(data, "<f4", blocks).astype(np.float32, copy=False)
    return Chunk(data, scales, np.frombuffer(data, np.int8, offset=4 * blocks), block_coords)
