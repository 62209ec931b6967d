"""The bytes of the sparse codec's blocks. A block of n coordinates keeps k = ceil(n / 64); the first of anything lies
in the lowest bits:

    scale    `<f4`: the larger size
    level    1 byte: the smaller size is scale * level / 256; 0 where no coordinate has it
    low      6 bits each: place mod 64, in whole threes of bytes
    high     2 k bits: bit (place div 64) + i is set for the i-th place (Elias-Fano)
    negative 1 bit each
    large    1 bit each: has the larger size

High, negative and large take whole bytes each; what is left over is zero. 85 bytes for 4,096 coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.choose import Places

BLOCK = 4096  # coordinates
LEVELS = 256  # the larger size, in steps of the smaller one
_ONE_IN = 64  # is kept
_LOW_BITS = 6
_LOW = 5  # where the low bits begin

Bytes = NDArray[np.uint8]
Bits = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a block of `coords` coordinates: how many are kept, and where its parts end."""

    coords: int

    @property
    def kept(self) -> int:
        return -(-self.coords // _ONE_IN)

    @property
    def ends(self) -> tuple[int, int, int, int]:
        """Of low, high, negative and large."""
        kept = self.kept
        low = _LOW + 3 * -(-kept // 4)
        high = low + -(-2 * kept // 8)
        each = -(-kept // 8)
        return low, high, high + each, high + 2 * each

    @property
    def size(self) -> int:
        """Bytes."""
        return self.ends[-1]


class Blocks(NamedTuple):
    """Blocks of one shape, a row each."""

    scales: Vector  # [blocks]
    levels: Bytes  # [blocks]
    places: Places  # [blocks, k] within the block, ascending
    negative: Bits  # [blocks, k]
    large: Bits  # [blocks, k]


def pack(blocks: Blocks, shape: Shape, table: Bytes) -> None:
    """Into `table` [blocks, size]."""
    low, high, negative, large = shape.ends
    count, kept = blocks.places.shape
    table[:, :4] = blocks.scales.astype("<f4").view(np.uint8).reshape(count, 4)
    table[:, 4] = blocks.levels
    fours = np.zeros((count, (low - _LOW) // 3, 4), np.uint32)
    fours.reshape(count, -1)[:, :kept] = blocks.places % _ONE_IN
    words = fours[..., 0] | fours[..., 1] << 6 | fours[..., 2] << 12 | fours[..., 3] << 18
    table[:, _LOW:low] = words.astype("<u4").view(np.uint8).reshape(count, -1, 4)[..., :3].reshape(count, -1)
    unary = np.zeros((count, 8 * (high - low)), np.bool_)
    unary[np.arange(count)[:, None], (blocks.places >> _LOW_BITS) + np.arange(kept)] = True
    table[:, low:high] = _packed(unary)
    table[:, high:negative] = _packed(blocks.negative)
    table[:, negative:large] = _packed(blocks.large)


def unpack(table: Bytes, shape: Shape) -> Blocks:
    """Of any bytes: those that `check` refuses give some numbers, in bounded time and memory."""
    low, high, negative, large = shape.ends
    count, kept = len(table), shape.kept
    scales = np.ascontiguousarray(table[:, :4]).view("<f4").reshape(-1).astype(np.float32, copy=False)
    words = np.zeros((count, (low - _LOW) // 3, 4), np.uint8)
    words[..., :3] = table[:, _LOW:low].reshape(count, -1, 3)
    shifts = np.arange(4, dtype=np.uint32) * np.uint32(_LOW_BITS)
    fours = words.view("<u4").astype(np.uint32, copy=False) >> shifts & (_ONE_IN - 1)  # [count, fours, 4]
    ones = np.flatnonzero(_unpacked(table[:, low:high]))[: count * kept]
    upper = np.zeros(count * kept, np.int64)
    upper[: len(ones)] = ones
    upper = upper.reshape(count, kept) - (np.arange(count) * 8 * (high - low))[:, None] - np.arange(kept)
    places = (upper << _LOW_BITS) + fours.reshape(count, -1)[:, :kept]
    signs, sizes = (_unpacked(table[:, part])[:, :kept] for part in (slice(high, negative), slice(negative, large)))
    return Blocks(scales, table[:, 4], places, signs, sizes)


def check(blocks: Blocks, table: Bytes, shape: Shape) -> str | None:
    """What an encoder would not write in the blocks that `table` holds, if anything. Of scales only zero matters here.

    A block of zeros has one spelling. In all others no kept number is 0, so that an encoder would keep the same ones.
    """
    low, high, _, _ = shape.ends
    places, many, zero = blocks.places, blocks.large.sum(axis=1), blocks.scales == 0
    if (_unpacked(table[:, low:high]).sum(axis=1) != shape.kept).any():
        return "another number of places than are kept"
    if (places[:, -1] >= shape.coords).any() or (places[:, 1:] <= places[:, :-1]).any():
        return "places that do not ascend, or end beyond their block"
    if (zero != (many == 0)).any() or (zero & (places != np.arange(shape.kept)).any(axis=1)).any():
        return "a block without its largest number, or numbers under a zero scale"
    if ((blocks.levels == 0) != (zero | (many == shape.kept))).any() or (blocks.negative & zero[:, None]).any():
        return "a smaller size that no number has, or none where some have it"
    again = np.empty_like(table)
    pack(blocks, shape, again)
    return None if (again == table).all() else "a bit that stands for nothing"


def _packed(bits: Bits) -> Bytes:
    return np.packbits(bits, axis=1, bitorder="little")


def _unpacked(table: Bytes) -> Bits:
    return np.unpackbits(table, axis=1, bitorder="little").view(np.bool_)
