"""The seam of codecs: numbers to bytes and back, chunk by chunk. One file a codec; `known.py` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distributed_training.errors import WireError

Vector = NDArray[np.float32]
HEAD_BYTES = 4  # of every chunk: the id of its codec, `<I`; what follows it stays aligned


@dataclass(frozen=True, slots=True)
class Layout:
    """How a vector of `num_coords` coordinates is cut into chunks, and chunks into int8's blocks."""

    num_coords: int
    chunk_coords: int
    block_coords: int

    @property
    def num_chunks(self) -> int:
        return -(-self.num_coords // self.chunk_coords)

    def coords(self, chunk: int) -> tuple[int, int]:
        """[start, stop) of a chunk's coordinates; the last chunk may be short."""
        return chunk * self.chunk_coords, min((chunk + 1) * self.chunk_coords, self.num_coords)

    def num_blocks(self, chunk: int) -> int:
        start, stop = self.coords(chunk)
        return -(-(stop - start) // self.block_coords)


class Chunk(Protocol):
    """An encoded chunk whose bytes are canonical: an encoder or `Codec.parse` made it, once, and whoever holds one
    checks nothing again."""

    @property
    def data(self) -> bytes: ...

    def norm(self) -> float:
        """Exact L2 norm of the decoded chunk, rounded once to fp32: +0 or normal. The same on every machine."""
        ...

    def rounding_norm(self) -> float:
        """How far, at most, encoding moved the vector, in float64. Of codecs that outputs may have."""
        ...

    def decode(self, out: Vector | None = None) -> Vector:
        """Its numbers, fp32 [n], none of them subnormal, in the first n of `out`, where that is given."""
        ...

    def add_to(self, total: Vector, share: np.float32, memory: Vector) -> None:
        """Add share times its numbers to `total`, fp32 [n]: the very bits that `add_decoded` gives.

        total: holds no -0.0, as no sum that began with +0 does. share: >= 0. memory: fp32, of n numbers at least.
        """
        ...


class Encoder(Protocol):
    """Encodes the chunks of a vector one after the other in memory of its own."""

    def encode(self, values: Vector) -> Chunk:
        """values: fp32 [n] of one chunk, finite; not changed. Raises ValueError for a number that is not finite."""
        ...


class Codec(Protocol):
    """One way to spell a chunk. Plain IEEE operations in numpy: every machine gets the same bytes (protocol section 1).

    The size of a chunk follows from the layout alone, so that it is known before anything is read.
    """

    @property
    def id(self) -> int:
        """In records."""
        ...

    @property
    def name(self) -> str:
        """In manifests."""
        ...

    @property
    def feedback(self) -> float:
        """Of what encoding left out, the share that a sender adds to its next vector; 0: it keeps nothing."""
        ...

    def encoder(self, layout: Layout) -> Encoder: ...

    def parse(self, data: bytes, layout: Layout, chunk: int) -> Chunk:
        """The bytes of chunk `chunk`, from anywhere. Raises WireError for anything an encoder cannot produce."""
        ...

    def chunk_bytes(self, layout: Layout, chunk: int) -> int:
        """Encoded size of a chunk."""
        ...


def head(codec_id: int) -> bytes:
    """The first bytes of a chunk."""
    return codec_id.to_bytes(HEAD_BYTES, "little")


def check_head(data: bytes, codec: Codec, layout: Layout, chunk: int) -> None:
    """Raises WireError for a chunk of another codec, or of another length than the layout says."""
    named = int.from_bytes(data[:HEAD_BYTES], "little")
    if len(data) >= HEAD_BYTES and named != codec.id:
        raise WireError(f"chunk {chunk}: of codec {named}, {codec.id} ({codec.name}) expected")
    if len(data) != codec.chunk_bytes(layout, chunk):
        raise WireError(f"chunk {chunk}: {len(data)} bytes, {codec.chunk_bytes(layout, chunk)} expected")


def add_decoded(chunk: Chunk, total: Vector, share: np.float32, memory: Vector) -> None:
    """`Chunk.add_to` of a codec without a shorter way: decode, multiply, add, each in fp32."""
    part = chunk.decode(memory)
    np.multiply(part, share, out=part)
    np.add(total, part, out=total)


def wire_bytes(codec: Codec, layout: Layout) -> int:
    """Encoded size of the whole vector."""
    return sum(codec.chunk_bytes(layout, c) for c in range(layout.num_chunks))
