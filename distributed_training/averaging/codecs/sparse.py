"""The sparse codec: of every block of 4,096 coordinates the 75 largest, each as a sign; their size is their mean.

A chunk is its head and its blocks, each `sparse_bytes.Shape.size` bytes; the last may be short, and keeps as large a
share. A block of zeros keeps its first places. Sums are of whole numbers (about millionths of the block's peak), and
places are chosen by the bits of numbers: the same bytes on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.codecs.base import HEAD_BYTES, Layout, Vector, check_head, head
from distributed_training.averaging.codecs.choose import Places, largest
from distributed_training.averaging.codecs.scales import LARGEST_SCALE, SMALLEST_SCALE, check_range
from distributed_training.averaging.codecs.sparse_bytes import BLOCK, Blocks, Bytes, Shape, check, pack, unpack
from distributed_training.errors import WireError

_UNIT = 1 << 20  # a block's peak, as a whole number
_NOT_FINITE = np.uint32(0x7F800000)


@dataclass(frozen=True, slots=True)
class SparseChunk:
    data: bytes
    num_coords: int

    def norm(self) -> float:
        """Squared scales times how many numbers have them, in float64, added with fsum."""
        squares = (blocks.scales.astype(np.float64) ** 2 * blocks.places.shape[1] for _, blocks in self._tables())
        return float(np.float32(math.sqrt(math.fsum(number for of in squares for number in of.tolist()))))

    def rounding_norm(self) -> float:
        """How far, at most, encoding lengthened the vector: a mean and what is left out only shorten it, so that is
        what the units of sums may add."""
        return self.norm() / _UNIT

    def decode(self, out: Vector | None = None) -> Vector:
        """Its numbers, fp32 [n], in the first n of `out`, where that is given."""
        decoded = (np.empty(self.num_coords, np.float32) if out is None else out)[: self.num_coords]
        decoded.fill(0)
        for coords, blocks in self._tables():
            decoded[coords][_flat(blocks)] = _numbers(blocks)
        return decoded

    def add_to(self, total: Vector, share: np.float32, memory: Vector) -> None:
        """Only what is kept: all else is +0, which changes no sum."""
        for coords, blocks in self._tables():
            numbers, places = _numbers(blocks), _flat(blocks)
            np.multiply(numbers, share, out=numbers)
            total[coords][places] += numbers

    def _tables(self) -> Iterator[tuple[slice, Blocks]]:
        for coords, shape, table in _tables(np.frombuffer(self.data, np.uint8), self.num_coords):
            yield coords, unpack(table, shape)


class SparseEncoder:
    """Encodes the chunks of a vector one after the other in memory of its own."""

    def __init__(self, layout: Layout) -> None:
        coords = min(layout.chunk_coords, layout.num_coords)
        self._keys, self._mask = np.empty(coords, np.uint32), np.empty(coords, np.bool_)
        self._data = np.empty(_chunk_bytes(coords), np.uint8)
        self._data[:HEAD_BYTES] = np.frombuffer(head(SPARSE.id), np.uint8)

    def encode(self, values: Vector) -> SparseChunk:
        """values: fp32 [n] of one chunk, finite. Its canonical bytes; beyond +-1e30 values saturate. Raises ValueError
        for a number that is not finite."""
        count = len(values)
        values = np.ascontiguousarray(values, np.float32)
        keys, data = self._keys[:count], self._data[: _chunk_bytes(count)]
        np.bitwise_and(values.view(np.uint32), np.uint32(0x7FFFFFFF), out=keys)  # magnitudes, in their order
        if (keys >= _NOT_FINITE).any():
            raise ValueError("cannot encode a non-finite number")
        for coords, shape, table in _tables(data, count):
            places = largest(
                keys[coords].reshape(-1, shape.coords), shape.kept, self._mask[coords].reshape(-1, shape.coords)
            )
            kept = np.take_along_axis(values[coords].reshape(-1, shape.coords), places, axis=1)
            pack(_quantised(kept, places), shape, table)
        return SparseChunk(data.tobytes(), count)


def _quantised(kept: Vector, places: Places) -> Blocks:
    """kept: fp32 [blocks, k] at those places."""
    sizes, count = np.abs(kept), kept.shape[1]
    peaks = sizes.max(axis=1)
    peaks[peaks < SMALLEST_SCALE] = 1  # then all its units are 0
    units = np.rint(sizes / peaks[:, None] * np.float32(_UNIT)).astype(np.int64)
    means = peaks.astype(np.float64) * (units.sum(axis=1) / count) / _UNIT
    scales = np.minimum(means, LARGEST_SCALE).astype(np.float32)
    zero = scales < SMALLEST_SCALE
    scales[zero] = 0
    return Blocks(scales, np.where(zero[:, None], np.arange(count), places), np.signbit(kept) & ~zero[:, None])


@dataclass(frozen=True, slots=True)
class Sparse:
    id: int = 3
    name: str = "sparse"
    feedback: float = 1.0

    def encoder(self, layout: Layout) -> SparseEncoder:
        return SparseEncoder(layout)

    def parse(self, data: bytes, layout: Layout, chunk: int) -> SparseChunk:
        check_head(data, self, layout, chunk)
        start, stop = layout.coords(chunk)
        for _, shape, table in _tables(np.frombuffer(data, np.uint8), stop - start):
            blocks = unpack(table, shape)
            check_range(blocks.scales, chunk)
            problem = check(blocks, table, shape)
            if problem is not None:
                raise WireError(f"chunk {chunk}: {problem}")
        return SparseChunk(data, stop - start)

    def chunk_bytes(self, layout: Layout, chunk: int) -> int:
        start, stop = layout.coords(chunk)
        return _chunk_bytes(stop - start)


SPARSE = Sparse()


def _chunk_bytes(num_coords: int) -> int:
    whole, rest = divmod(num_coords, BLOCK)
    return HEAD_BYTES + whole * Shape(BLOCK).size + (Shape(rest).size if rest else 0)


def _tables(data: Bytes, num_coords: int) -> Iterator[tuple[slice, Shape, Bytes]]:
    """The whole blocks as one table, and the short last one as another: (coordinates, shape, bytes [blocks, size])."""
    whole, start = num_coords // BLOCK * BLOCK, HEAD_BYTES
    for coords, shape in ((slice(0, whole), Shape(BLOCK)), (slice(whole, num_coords), Shape(num_coords - whole))):
        if coords.stop > coords.start:
            end = start + shape.size * ((coords.stop - coords.start) // shape.coords)
            yield coords, shape, data[start:end].reshape(-1, shape.size)
            start = end


def _flat(blocks: Blocks) -> Places:
    """Places in the table as one row."""
    return (blocks.places + np.arange(0, len(blocks.places) * BLOCK, BLOCK)[:, None]).reshape(-1)


def _numbers(blocks: Blocks) -> Vector:
    """fp32, as many as `_flat` has places."""
    sizes = np.repeat(blocks.scales[:, None], blocks.places.shape[1], axis=1)
    np.negative(sizes, out=sizes, where=blocks.negative)
    return sizes.reshape(-1)
