"""Numbers as they are, as if that were a codec: what the others are compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.codecs.base import Layout, Vector, add_decoded


@dataclass(frozen=True, slots=True)
class Fp32Chunk:
    data: bytes

    def norm(self) -> float:
        return math.sqrt(math.fsum((np.frombuffer(self.data, "<f4").astype(np.float64) ** 2).tolist()))

    def rounding_norm(self) -> float:
        return 0.0

    def decode(self, out: Vector | None = None) -> Vector:
        numbers = np.frombuffer(self.data, np.float32)
        if out is None:
            return numbers.copy()
        out[: len(numbers)] = numbers
        return out[: len(numbers)]

    def add_to(self, total: Vector, share: np.float32, memory: Vector) -> None:
        add_decoded(self, total, share, memory)


@dataclass(frozen=True, slots=True)
class Fp32:
    id: int = 0
    name: str = "fp32"
    feedback: bool = False

    def encoder(self, layout: Layout) -> Fp32:
        return self

    def encode(self, values: Vector) -> Fp32Chunk:
        return Fp32Chunk(values.tobytes())

    def parse(self, data: bytes, layout: Layout, chunk: int) -> Fp32Chunk:
        return Fp32Chunk(data)

    def chunk_bytes(self, layout: Layout, chunk: int) -> int:
        start, stop = layout.coords(chunk)
        return 4 * (stop - start)


FP32 = Fp32()
