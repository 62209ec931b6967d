"""The bytes of the sparse codec's blocks. A block of n coordinates keeps k = ceil(75 n / 4096); the first of anything
lies in the lowest bits:

    scale    `<f4`: the size of every kept number
    low      5 bits each: place mod 32
    high     k + ceil(n / 32) bits: bit (place div 32) + i is set for the i-th place (Elias-Fano)
    negative 1 bit each

Whole bytes; what is left over is zero. 86 bytes for 4,096 coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.choose import Places

BLOCK = 4096  # coordinates
_KEPT = 75  # of them
_LOW_BITS = 5
_BITS = 4  # where all behind the scale begins

Bytes = NDArray[np.uint8]
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a block of `coords` coordinates: how many are kept, and where its parts end."""

    coords: int

    @property
    def kept(self) -> int:
        return -(-self.coords * _KEPT // BLOCK)

    @property
    def ends(self) -> tuple[int, int, int]:
        """Of low, high and negative, in bits behind the scale."""
        low = _LOW_BITS * self.kept
        high = low + self.kept - (-self.coords >> _LOW_BITS)
        return low, high, high + self.kept

    @property
    def size(self) -> int:
        """Bytes."""
        return _BITS - (-self.ends[-1] // 8)


class Blocks(NamedTuple):
    """Blocks of one shape, a row each."""

    scales: Vector  # [blocks]
    places: Places  # [blocks, k] within the block, ascending
    negative: Bits  # [blocks, k]


def pack(blocks: Blocks, shape: Shape, table: Bytes) -> None:
    """Into `table` [blocks, size]."""
    low, high, negative = shape.ends
    count, kept = blocks.places.shape
    table[:, :_BITS] = blocks.scales.astype("<f4").view(np.uint8).reshape(count, _BITS)
    bits = np.zeros((count, 8 * (shape.size - _BITS)), np.bool_)
    lower = blocks.places.astype(np.uint8)[..., None]
    bits[:, :low] = np.unpackbits(lower, axis=2, count=_LOW_BITS, bitorder="little").reshape(count, -1)
    bits[np.arange(count)[:, None], low + (blocks.places >> _LOW_BITS) + np.arange(kept)] = True
    bits[:, high:negative] = blocks.negative
    table[:, _BITS:] = np.packbits(bits, axis=1, bitorder="little")


def unpack(table: Bytes, shape: Shape) -> Blocks:
    """Of any bytes: those that `check` refuses give some numbers, in bounded time and memory."""
    low, high, negative = shape.ends
    count, kept = len(table), shape.kept
    scales = np.ascontiguousarray(table[:, :_BITS]).view("<f4").reshape(-1).astype(np.float32, copy=False)
    bits = _unpacked(table)
    lower = np.packbits(bits[:, :low].reshape(count, kept, _LOW_BITS), axis=2, bitorder="little")[..., 0]
    ones = np.flatnonzero(bits[:, low:high])[: count * kept]
    upper = np.zeros(count * kept, np.int64)
    upper[: len(ones)] = ones
    upper = upper.reshape(count, kept) - (np.arange(count) * (high - low))[:, None] - np.arange(kept)
    return Blocks(scales, (upper << _LOW_BITS) + lower, bits[:, high:negative].view(np.bool_))


def check(blocks: Blocks, table: Bytes, shape: Shape) -> str | None:
    """What an encoder would not write in the blocks that `table` holds, if anything. Of scales only zero matters here.

    A block of zeros has one spelling. In all others no kept number is 0, so that an encoder would keep the same ones.
    """
    low, high, _ = shape.ends
    places, zero = blocks.places, blocks.scales == 0
    if (_unpacked(table)[:, low:high].sum(axis=1) != shape.kept).any():
        return "another number of places than are kept"
    if (places[:, -1] >= shape.coords).any() or (places[:, 1:] <= places[:, :-1]).any():
        return "places that do not ascend, or end beyond their block"
    if (places[zero] != np.arange(shape.kept)).any() or blocks.negative[zero].any():
        return "a block of zeros that is spelled otherwise"
    again = np.empty_like(table)
    pack(blocks, shape, again)
    return None if (again == table).all() else "a bit that stands for nothing"


def _unpacked(table: Bytes) -> Bytes:
    return np.unpackbits(table[:, _BITS:], axis=1, bitorder="little")
