"""int8 beside the straightforward functions that it replaced, bit by bit: where fp32 sums end, saturation, norms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distributed_training.averaging.codecs.base import HEAD_BYTES, Layout, Vector
from distributed_training.averaging.codecs.int8 import INT8, encode_chunk

BLOCKS = [1, 16, 512, 1039, 1040, 1041, 4096]


def literal(values: Vector, block: int) -> tuple[Vector, np.ndarray]:
    """Scales and codes, a block after the other, every quotient clipped."""
    scales, codes = [], []
    for start in range(0, len(values), block):
        part = values[start : start + block]
        scale = min(np.abs(part).max() / np.float32(127), np.float32(1e30))
        scale = np.float32(0) if scale < np.float32(1e-30) else np.float32(scale)
        quotients = part / (scale if scale else np.float32(1))
        codes.append(np.clip(np.rint(quotients), -127, 127).astype(np.int8))
        scales.append(scale)
    return np.array(scales, np.float32), np.concatenate(codes)


def literal_norm(scales: Vector, codes: np.ndarray, block: int) -> float:
    """Whole numbers in Python, then as protocol section 6 says."""
    squares = []
    for index, scale in enumerate(scales):
        total = sum(int(code) ** 2 for code in codes[index * block : (index + 1) * block])
        squares.append(float(total) * float(scale) ** 2)
    return float(np.float32(math.sqrt(math.fsum(squares))))


def drawn(kind: str, size: int) -> Vector:
    rng = np.random.default_rng(size)
    if kind == "largest codes":
        return np.full(size, 1.5, np.float32) * rng.choice(np.array([-1, 1], np.float32), size)
    if kind == "saturated":
        return (rng.standard_normal(size) * 1e33).astype(np.float32)
    if kind == "tiny":
        return (rng.standard_normal(size) * 10.0 ** rng.uniform(-40, -20, size)).astype(np.float32)
    return rng.standard_normal(size).astype(np.float32)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", ["normal", "largest codes", "saturated", "tiny"])
def test_bytes_and_norms_are_those_of_the_literal_functions(block: int, kind: str) -> None:
    for size in (3 * block, 3 * block - block // 2):
        layout = Layout(size, size, block)
        values = drawn(kind, size)
        scales, codes = literal(values, block)
        made = encode_chunk(values, layout)
        assert made.data[HEAD_BYTES:] == scales.tobytes() + codes.tobytes()
        parsed = INT8.parse(made.data, layout, 0)
        assert parsed == made and not parsed.known
        assert made.norm() == parsed.norm() == literal_norm(scales, codes, block)
        assert parsed.norm() == parsed.norm() and parsed.rounding_norm() == made.rounding_norm()


def test_the_norm_of_one_chunk_is_not_that_of_the_next() -> None:
    """The encoder's memory is used again; what it found out is the chunk's own."""
    layout = Layout(1000, 100, 16)
    encoder, values = INT8.encoder(layout), drawn("normal", 1000)
    made = [encoder.encode(values[slice(*layout.coords(c))]) for c in range(10)]
    again = [INT8.parse(chunk.data, layout, c).norm() for c, chunk in enumerate(made)]
    assert [chunk.norm() for chunk in made] == again and len(set(again)) == 10
