"""How a vector is cut into chunks and blocks, whatever the codec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a vector of `num_coords` coordinates is cut into chunks and blocks."""

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

    def chunk_bytes(self, chunk: int) -> int:
        """Encoded size of a chunk."""
        start, stop = self.coords(chunk)
        return 4 * self.num_blocks(chunk) + stop - start

    @property
    def wire_bytes(self) -> int:
        """Encoded size of the whole vector."""
        return sum(self.chunk_bytes(c) for c in range(self.num_chunks))
