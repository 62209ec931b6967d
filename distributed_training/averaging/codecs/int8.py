"""The int8 codec: per block of coordinates one fp32 scale (absmax / 127) and one signed byte each.

A chunk is encoded as its head, its scales (`<f4`, one per block) and its values (`i1`). Encoding and decoding are
plain IEEE operations in numpy, so every machine gets the same bytes (protocol section 1, invariant 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import HEAD_BYTES, Layout, Vector, add_decoded, check_head, head
from distributed_training.averaging.codecs.scales import LARGEST_SCALE, check_quotients, check_range, scales_of
from distributed_training.errors import WireError

LARGEST_CODE = 127
_EXACT = (1 << 24) // LARGEST_CODE**2  # so many squares of codes have sums that fp32 holds whole, in any order


@dataclass(frozen=True, slots=True)
class Int8Chunk:
    data: bytes
    scales: Vector = field(compare=False, repr=False)  # one per block; a view of `data`, as the codes are
    codes: NDArray[np.int8] = field(compare=False, repr=False)
    block_coords: int
    known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # norms that were asked for

    def norm(self) -> float:
        """Exact L2 norm of the decoded chunk, rounded once to fp32.

        Sums of squared codes per block (whole numbers below 2^53), times scale squared (exact in float64), added with
        fsum: free of order.
        """
        if "norm" not in self.known:
            squares = np.empty(len(self.scales), np.float64)
            for blocks, codes, _ in self._tables():
                squares[blocks] = _squares(codes.astype(np.float32))
            self.known["norm"] = _norm(squares, self.scales)
        return self.known["norm"]

    def rounding_norm(self) -> float:
        """How far, at most, encoding moved the vector: L2 norm of half a scale in every coordinate, in float64.

        `encode_chunk` rounds each coordinate to the nearest multiple of its block's scale; saturation and blocks that
        are encoded as zero only shorten. With b coordinates in a block at most sqrt(b) / 254 of the chunk's own norm,
        because every block that is not zero has a code of 127.
        """
        if "rounding" not in self.known:
            sizes = np.full(len(self.scales), self.block_coords, np.float64)
            sizes[-1] = len(self.codes) - self.block_coords * (len(self.scales) - 1)
            halves = self.scales.astype(np.float64) / 2
            self.known["rounding"] = math.sqrt(math.fsum((halves * halves * sizes).tolist()))
        return self.known["rounding"]

    def decode(self, out: Vector | None = None) -> Vector:
        """Its numbers, fp32 [n], in the first n of `out`, where that is given."""
        decoded = (np.empty(len(self.codes), np.float32) if out is None else out)[: len(self.codes)]
        for blocks, codes, coords in self._tables():
            np.multiply(codes, self.scales[blocks, None], out=decoded[coords].reshape(codes.shape))
        return decoded

    def add_to(self, total: Vector, share: np.float32, memory: Vector) -> None:
        add_decoded(self, total, share, memory)

    def _tables(self) -> list[tuple[slice, NDArray[np.int8], slice]]:
        """The whole blocks as one table and the short last one as another: (which blocks, codes, which coordinates)."""
        size, count = self.block_coords, len(self.codes)
        whole = count // size
        tables = [(slice(0, whole), self.codes[: whole * size].reshape(whole, size), slice(0, whole * size))]
        if count % size:
            tables.append((slice(whole, whole + 1), self.codes[whole * size :][None], slice(whole * size, count)))
        return tables


class Int8Encoder:
    """Encodes the chunks of a vector one after the other in memory of its own: no chunk touches fresh pages."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        blocks = -(-min(layout.chunk_coords, layout.num_coords) // layout.block_coords)
        self._quotients = np.empty((blocks, layout.block_coords), np.float32)
        self._data = np.empty(HEAD_BYTES + 4 * blocks + self._quotients.size, np.uint8)
        self._data[:HEAD_BYTES] = np.frombuffer(head(INT8.id), np.uint8)

    def encode(self, values: Vector) -> Int8Chunk:
        """values: fp32 [n] of one chunk, finite. Its canonical bytes; beyond +-127e30 values saturate. Raises
        ValueError for a number that is not finite."""
        size, count = self._layout.block_coords, len(values)
        blocks, whole = -(-count // size), count // size
        quotients = self._quotients[:blocks]
        flat = quotients.reshape(-1)
        np.abs(values, out=flat[:count])
        flat[count:] = 0
        scales = scales_of(quotients.max(axis=1), LARGEST_CODE)
        divisor = np.where(scales == 0, np.float32(1), scales)[:, None]  # then what is left rounds to zero by itself
        np.divide(values[: whole * size].reshape(whole, size), divisor[:whole], out=quotients[:whole])
        np.divide(values[whole * size :], divisor[-1], out=flat[whole * size : count])
        np.rint(quotients, out=quotients)
        if scales.max() == LARGEST_SCALE:  # else no quotient is further from 127 than division rounds
            np.clip(quotients, -LARGEST_CODE, LARGEST_CODE, out=quotients)
        codes = HEAD_BYTES + 4 * blocks
        data = self._data[: codes + count]
        data[HEAD_BYTES:codes].view("<f4")[:] = scales
        np.copyto(data[codes:].view(np.int8), flat[:count], casting="unsafe")
        made = _view(data.tobytes(), blocks, size)
        made.known["norm"] = _norm(_squares(quotients).astype(np.float64), made.scales)
        return made


@dataclass(frozen=True, slots=True)
class Int8:
    id: int = 1
    name: str = "int8"
    feedback: float = 0.0

    def encoder(self, layout: Layout) -> Int8Encoder:
        return Int8Encoder(layout)

    def parse(self, data: bytes, layout: Layout, chunk: int) -> Int8Chunk:
        return parse_chunk(data, layout, chunk)

    def chunk_bytes(self, layout: Layout, chunk: int) -> int:
        start, stop = layout.coords(chunk)
        return HEAD_BYTES + 4 * layout.num_blocks(chunk) + stop - start


INT8 = Int8()


def encode_chunk(values: Vector, layout: Layout) -> Int8Chunk:
    """One chunk alone; as `Int8Encoder.encode`."""
    return Int8Encoder(layout).encode(values)


def parse_chunk(data: bytes, layout: Layout, chunk: int) -> Int8Chunk:
    """The bytes of chunk `chunk`, from anywhere. Raises WireError for anything `encode_chunk` cannot produce."""
    check_head(data, INT8, layout, chunk)
    parsed = _view(data, layout.num_blocks(chunk), layout.block_coords)
    scales, codes = parsed.scales, parsed.codes
    zero = check_range(scales, chunk)
    check_quotients(scales, LARGEST_CODE, chunk)
    if codes.min() == -128:
        raise WireError(f"chunk {chunk}: code -128")
    peaks = np.maximum.reduceat(np.abs(codes), np.arange(0, len(codes), layout.block_coords))
    if (peaks != np.where(zero, 0, LARGEST_CODE)).any():
        raise WireError(f"chunk {chunk}: the largest code of a block is not 127, or not 0 under a zero scale")
    return parsed


def _view(data: bytes, blocks: int, block_coords: int) -> Int8Chunk:
    scales = np.frombuffer(data, "<f4", blocks, HEAD_BYTES).astype(np.float32, copy=False)
    return Int8Chunk(data, scales, np.frombuffer(data, np.int8, offset=HEAD_BYTES + 4 * blocks), block_coords)


def _squares(codes: NDArray[np.float32]) -> NDArray[Any]:
    """Sums of squares of whole numbers up to 127, one for each row; exact."""
    wide = np.float32 if codes.shape[1] <= _EXACT else np.float64
    return np.einsum("ij,ij->i", codes, codes, dtype=wide)


def _norm(squares: NDArray[np.float64], scales: Vector) -> float:
    squares = squares * scales.astype(np.float64) ** 2
    return float(np.float32(math.sqrt(math.fsum(squares.tolist()))))
