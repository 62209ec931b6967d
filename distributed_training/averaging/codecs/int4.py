"""The int4 codec: per block of 128 coordinates one fp32 scale (absmax / 7) and half a byte each.

A chunk is its head, its scales (`<f4`) and its codes, -7..7 as 1..15, two a byte, the first in the low half; an odd
number of coordinates ends with a code of 0. Plain IEEE operations in numpy and tables: the same bytes everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distributed_training.averaging.codecs.base import HEAD_BYTES, Layout, Vector, add_decoded, check_head, head
from distributed_training.averaging.codecs.scales import check_quotients, check_range, scales_of
from distributed_training.errors import WireError

LARGEST_CODE = 7
BLOCK = 128  # coordinates under one scale
_PAIRS = BLOCK // 2
_ZERO = 8  # a code of 0, as it is spelled: halves of 0 never occur
_HALVES = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1) - _ZERO  # [byte, first or second]: its codes
# Of every byte: both codes as one 8-byte number, so that one look-up decodes two.
_CODES = np.ascontiguousarray(_HALVES, np.float32).view(np.uint64).reshape(-1)
# Of every byte: the squares of its codes, and from bit 16 on how many are not 0; sums of 64 stay apart.
_SQUARES = ((_HALVES**2).sum(axis=1) + ((_HALVES != 0).sum(axis=1) << 16)).astype(np.uint32)
_PEAKS = np.abs(_HALVES).max(axis=1).astype(np.uint8)  # 8 marks a byte with a half of 0


def _blocks(num_coords: int) -> int:
    return -(-num_coords // BLOCK)


@dataclass(frozen=True, slots=True)
class Int4Chunk:
    data: bytes
    scales: Vector = field(compare=False, repr=False)  # one per block; a view of `data`, as the codes are
    codes: NDArray[np.uint8] = field(compare=False, repr=False)  # two a byte
    num_coords: int
    known: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # norms that were asked for

    def norm(self) -> float:
        """Sums of squared codes per block, times scale squared (exact in float64), added with fsum: free of order."""
        if "norm" not in self.known:
            self._find_norms()
        return self.known["norm"]

    def rounding_norm(self) -> float:
        """How far, at most, encoding lengthened the vector: L2 norm of half a scale where a code is not 0, in float64.

        A coordinate that is rounded to 0 only gets shorter, as saturated ones and blocks that are encoded as zero do.
        """
        if "rounding" not in self.known:
            self._find_norms()
        return self.known["rounding"]

    def decode(self, out: Vector | None = None) -> Vector:
        """Its numbers, fp32 [n], in the first n of `out`, where that is given."""
        count = self.num_coords
        decoded = (np.empty(count, np.float32) if out is None else out)[:count]
        whole = count // BLOCK
        if whole:
            table = decoded[: whole * BLOCK].reshape(whole, BLOCK)
            pairs = self.codes[: whole * _PAIRS].reshape(whole, _PAIRS)
            if table.flags.c_contiguous and table.ctypes.data % 8 == 0:
                np.take(_CODES, pairs, out=table.view(np.uint64), mode="clip")
                np.multiply(table, self.scales[:whole, None], out=table)
            else:
                np.multiply(_CODES[pairs].view(np.float32), self.scales[:whole, None], out=table)
        if count % BLOCK:
            last = _CODES[self.codes[whole * _PAIRS :]].view(np.float32)[: count - whole * BLOCK]
            np.multiply(last, self.scales[-1], out=decoded[whole * BLOCK :])
        return decoded

    def add_to(self, total: Vector, share: np.float32, memory: Vector) -> None:
        add_decoded(self, total, share, memory)

    def _find_norms(self) -> None:
        sums, squares = self._sums(), self.scales.astype(np.float64) ** 2
        self.known["norm"] = _norm(squares * (sums & 0xFFFF))
        self.known["rounding"] = math.sqrt(math.fsum((squares / 4 * (sums >> 16)).tolist()))

    def _sums(self) -> NDArray[np.uint32]:
        """Of every block: the sum of its squared codes, and from bit 16 on how many are not 0."""
        found, whole = _SQUARES[self.codes], self.num_coords // BLOCK
        sums = found[: whole * _PAIRS].reshape(whole, _PAIRS).sum(axis=1, dtype=np.uint32)
        return np.append(sums, found[whole * _PAIRS :].sum(dtype=np.uint32)) if whole < len(self.scales) else sums


class Int4Encoder:
    """Encodes the chunks of a vector one after the other in memory of its own: no chunk touches fresh pages."""

    def __init__(self, layout: Layout) -> None:
        blocks = _blocks(min(layout.chunk_coords, layout.num_coords))
        self._quotients = np.empty((blocks, BLOCK), np.float32)
        self._codes = np.empty((blocks, BLOCK), np.uint8)
        self._data = np.empty(HEAD_BYTES + (4 + _PAIRS) * blocks, np.uint8)
        self._data[:HEAD_BYTES] = np.frombuffer(head(INT4.id), np.uint8)

    def encode(self, values: Vector) -> Int4Chunk:
        """values: fp32 [n] of one chunk, finite. Its canonical bytes; beyond +-7e30 values saturate. Raises ValueError
        for a number that is not finite."""
        count = len(values)
        blocks, whole = _blocks(count), count // BLOCK
        quotients, codes = self._quotients[:blocks], self._codes[:blocks]
        flat = quotients.reshape(-1)
        np.abs(values, out=flat[:count])
        flat[count:] = 0
        scales = scales_of(quotients.max(axis=1), LARGEST_CODE)
        divisor = np.where(scales == 0, np.float32(1), scales)[:, None]  # then what is left rounds to zero by itself
        np.divide(values[: whole * BLOCK].reshape(whole, BLOCK), divisor[:whole], out=quotients[:whole])
        np.divide(values[whole * BLOCK :], divisor[-1], out=flat[whole * BLOCK : count])
        np.rint(quotients, out=quotients)
        np.clip(quotients, -LARGEST_CODE, LARGEST_CODE, out=quotients)
        squares = np.einsum("ij,ij->i", quotients, quotients)  # fp32 holds sums of 128 codes squared whole
        np.add(quotients, np.float32(_ZERO), out=quotients)
        np.copyto(codes, quotients, casting="unsafe")
        start, pairs = HEAD_BYTES + 4 * blocks, (count + 1) // 2
        data = self._data[: start + pairs]
        data[HEAD_BYTES:start].view("<f4")[:] = scales
        # Of two codes in 16 bits, low byte first: the second four bits down, beside the first.
        both = codes.reshape(-1).view("<u2")[:pairs]
        np.copyto(data[start:], both | both >> 4, casting="unsafe")
        made = _view(data.tobytes(), count)
        made.known["norm"] = _norm(squares * scales.astype(np.float64) ** 2)
        return made


@dataclass(frozen=True, slots=True)
class Int4:
    id: int = 2
    name: str = "int4"
    feedback: float = 0.0

    def encoder(self, layout: Layout) -> Int4Encoder:
        return Int4Encoder(layout)

    def parse(self, data: bytes, layout: Layout, chunk: int) -> Int4Chunk:
        check_head(data, self, layout, chunk)
        start, stop = layout.coords(chunk)
        parsed = _view(data, stop - start)
        scales, codes = parsed.scales, parsed.codes
        zero = check_range(scales, chunk)
        check_quotients(scales, LARGEST_CODE, chunk)
        peaks = np.maximum.reduceat(_PEAKS[codes], np.arange(0, len(codes), _PAIRS))
        if (peaks > LARGEST_CODE).any():
            raise WireError(f"chunk {chunk}: code -8")
        if parsed.num_coords % 2 and codes[-1] >> 4 != _ZERO:
            raise WireError(f"chunk {chunk}: a code beyond its last coordinate")
        if (peaks != np.where(zero, 0, LARGEST_CODE)).any():
            raise WireError(f"chunk {chunk}: the largest code of a block is not 7, or not 0 under a zero scale")
        return parsed

    def chunk_bytes(self, layout: Layout, chunk: int) -> int:
        start, stop = layout.coords(chunk)
        return HEAD_BYTES + 4 * _blocks(stop - start) + (stop - start + 1) // 2


INT4 = Int4()


def _norm(squares: NDArray[np.float64]) -> float:
    return float(np.float32(math.sqrt(math.fsum(squares.tolist()))))


def _view(data: bytes, num_coords: int) -> Int4Chunk:
    blocks = _blocks(num_coords)
    scales = np.frombuffer(data, "<f4", blocks, HEAD_BYTES).astype(np.float32, copy=False)
    codes = np.frombuffer(data, np.uint8, offset=HEAD_BYTES + 4 * blocks)
    return Int4Chunk(data, scales, codes, num_coords)
