from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distributed_training.averaging.codecs.base import Layout, Vector
from distributed_training.averaging.codecs.int8 import encode_chunk, parse_chunk
from distributed_training.averaging.contribution import encode_contribution, from_chunks, split_wire
from distributed_training.errors import WireError

LAYOUT = Layout(num_coords=100, chunk_coords=40, block_coords=16)  # chunks of 40, 40, 20; blocks of 16, 16, 8 | 16, 4
ONE = Layout(num_coords=40, chunk_coords=40, block_coords=16)
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
tame = st.floats(-(2.0**60), 2.0**60, width=32)
vectors = hnp.arrays(np.float32, 40, elements=tame)


def encoded(values: Vector, layout: Layout) -> bytes:
    return bytes(encode_chunk(values, layout).data)


def normal(seed: int, size: int, scale: float = 1.0) -> Vector:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def test_layout_covers_every_coordinate_once() -> None:
    assert [LAYOUT.coords(c) for c in range(LAYOUT.num_chunks)] == [(0, 40), (40, 80), (80, 100)]
    assert [LAYOUT.num_blocks(c) for c in range(3)] == [3, 3, 2]
    assert [LAYOUT.chunk_bytes(c) for c in range(3)] == [52, 52, 28]
    assert LAYOUT.wire_bytes == 132
    assert Layout(80, 40, 16).num_chunks == 2  # no empty chunk at the end


def test_canonical_bytes() -> None:
    values = np.array([127, -63.5, 0.4, 0.6, 1.5, 2.5], np.float32)
    layout = Layout(6, 6, 4)
    data = encoded(values, layout)
    second = np.float32(2.5) / np.float32(127)
    assert data == struct.pack("<ff6b", 1.0, second, 127, -64, 0, 1, 76, 127)  # rounds half to even
    assert parse_chunk(data, layout, 0).decode().tolist() == [127, -64, 0, 1, float(np.float32(76) * second), 2.5]


@settings(max_examples=100)
@given(vectors)
def test_error_is_at_most_half_a_step(values: Vector) -> None:
    data = encoded(values, ONE)
    scales = np.repeat(np.frombuffer(data[:12], "<f4"), 16)[:40].astype(np.float64)
    error = np.abs(parse_chunk(data, ONE, 0).decode().astype(np.float64) - values)
    bound = np.where(scales > 0, 0.5001 * scales, 1.27e-28)
    assert (error <= bound + 1e-6 * np.abs(values)).all()


@settings(max_examples=100)
@given(hnp.arrays(np.float32, 40, elements=any_float))
def test_encoding_is_stable(values: Vector) -> None:
    data = encoded(values, ONE)
    once = parse_chunk(data, ONE, 0).decode()
    assert np.isfinite(once).all()
    assert encoded(once, ONE)[12:] == data[12:]  # the codes never move
    twice = parse_chunk(encoded(once, ONE), ONE, 0).decode()
    np.testing.assert_allclose(twice, once, rtol=2.5e-7)  # the scale moves by its last bit at most
    assert parse_chunk(encoded(-values, ONE), ONE, 0).decode().tolist() == (-once).tolist()


def test_bytes_of_a_seeded_vector_come_back_whole() -> None:
    layout = Layout(4096, 4096, 512)
    for seed in range(5):
        data = encoded(normal(seed, 4096), layout)
        assert encoded(parse_chunk(data, layout, 0).decode(), layout) == data


@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, -1e-38, 1e-29, 1.2e-28])
def test_tiny_blocks_are_plain_zeros(tiny: float) -> None:
    values = np.full(40, tiny, np.float32)
    assert encoded(values, ONE) == bytes(52)
    assert parse_chunk(bytes(52), ONE, 0).decode().tobytes() == bytes(160)  # +0.0 everywhere
    assert parse_chunk(bytes(52), ONE, 0).norm() == 0.0


def test_the_smallest_scale_is_not_subnormal() -> None:
    data = encoded(np.full(40, 1.28e-28, np.float32), ONE)
    assert struct.unpack("<f", data[:4])[0] >= np.float32(1e-30) > np.finfo(np.float32).tiny
    assert data[12:] == b"\x7f" * 40


@pytest.mark.parametrize("huge", [1.3e32, 3.4e38])
def test_huge_values_saturate_and_stay_finite(huge: float) -> None:
    data = encoded(np.array([huge, -huge, 1.0] + [0.0] * 37, np.float32), ONE)
    decoded = parse_chunk(data, ONE, 0).decode()
    np.testing.assert_allclose(decoded[:3], [1.27e32, -1.27e32, 0], rtol=1e-6)
    assert np.isfinite(parse_chunk(data, ONE, 0).norm())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_numbers_are_not_encoded(bad: float) -> None:
    with pytest.raises(ValueError, match="non-finite"):
        encoded(np.array([0, bad], np.float32), ONE)


def test_a_short_last_chunk() -> None:
    values = normal(1, 100)
    made = encode_contribution(values, LAYOUT)
    assert [len(c) for c in made.chunks] == [52, 52, 28]
    last = parse_chunk(made.chunks[2], LAYOUT, 2).decode()
    assert last.shape == (20,) and last.dtype == np.float32
    with pytest.raises(WireError, match="28 expected"):
        parse_chunk(made.chunks[0], LAYOUT, 2).decode()


# --- norms -----------------------------------------------------------------------------------------


def exact_square(data: bytes, layout: Layout, chunk: int) -> Fraction:
    split = 4 * layout.num_blocks(chunk)
    scales = [Fraction(float(s)) for s in np.frombuffer(data[:split], "<f4")]
    codes = np.frombuffer(data[split:], np.int8).tolist()
    return sum((Fraction(c * c) * scales[i // layout.block_coords] ** 2 for i, c in enumerate(codes)), Fraction())


@settings(max_examples=100)
@given(hnp.arrays(np.float32, 40, elements=any_float))
def test_norm_is_that_of_exact_arithmetic(values: Vector) -> None:
    data = encoded(values, ONE)
    norm = parse_chunk(data, ONE, 0).norm()
    assert norm == float(np.float32(norm))
    below, above = (Fraction(float(np.nextafter(np.float32(norm), np.float32(x)))) for x in (-np.inf, np.inf))
    middle = Fraction(norm)
    low, high = (below + middle) / 2, (above + middle) / 2  # norm is the nearest fp32, up to float64 rounding
    slack = 1 + Fraction(1, 1 << 50)
    square = exact_square(data, ONE, 0)
    assert max(low, 0) ** 2 <= square * slack and square <= high**2 * slack


def test_norm_does_not_depend_on_order() -> None:
    layout = Layout(512, 512, 16)
    scales = 10.0 ** np.random.default_rng(0).uniform(-20, 20, 32)
    blocks = (normal(1, 512).reshape(32, 16) * scales[:, None]).astype(np.float32)
    norms = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shuffled = rng.permuted(blocks[rng.permutation(32)], axis=1)
        norms.add(parse_chunk(encoded(shuffled.reshape(-1), layout), layout, 0).norm())
    assert len(norms) == 1


def test_bytes_and_norms_do_not_depend_on_threads() -> None:
    layout = Layout(20_000, 4096, 512)
    alone = encode_contribution(normal(3, 20_000), layout)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: encode_contribution(normal(3, 20_000), layout), range(8)))
    assert all(made == alone for made in together)


# --- foreign bytes ---------------------------------------------------------------------------------

GOOD = encoded(normal(5, 40), ONE)


def with_scale(scale: float) -> bytes:
    return struct.pack("<f", scale) + GOOD[4:]


REFUSED = {
    "negative scale": with_scale(-1.0),
    "negative zero scale": with_scale(-0.0)[:4] + GOOD[4:12] + bytes(16) + GOOD[28:],
    "tiny scale": with_scale(9e-31),
    "subnormal scale": with_scale(1e-40),
    "huge scale": with_scale(1.1e30),
    "scale whose codes overflow": with_scale(3e38),
    "nan scale": with_scale(float("nan")),
    "infinite scale": with_scale(float("inf")),
    "codes under a zero scale": with_scale(0.0),
    "code -128": GOOD[:12] + b"\x80" + GOOD[13:],
    "no code of 127": GOOD[:12] + bytes(16) + GOOD[28:],
    "short": GOOD[:-1],
    "long": GOOD + b"\0",
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bytes_that_no_encoder_writes_are_refused(name: str) -> None:
    parse_chunk(GOOD, ONE, 0).decode()
    with pytest.raises(WireError, match="chunk 0"):
        parse_chunk(REFUSED[name], ONE, 0)
    with pytest.raises(WireError, match="chunk 0"):
        from_chunks([REFUSED[name]], ONE)


@settings(max_examples=100)
@given(st.integers(0, 51), st.binary(min_size=1, max_size=8))
def test_mutated_chunks_are_finite_or_refused(at: int, patch: bytes) -> None:
    data = (GOOD[:at] + patch + GOOD[at + len(patch) :])[:52]
    try:
        values, norm = parse_chunk(data, ONE, 0).decode(), parse_chunk(data, ONE, 0).norm()
    except WireError:
        return
    assert np.isfinite(values).all() and np.isfinite(norm)
    assert encoded(values, ONE)[12:] == data[12:]


@settings(max_examples=100)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        parse_chunk(data, ONE, 0).decode()
    except WireError:
        pass


def test_wire_bytes_are_cut_where_they_were_joined() -> None:
    made = encode_contribution(normal(2, 100), LAYOUT)
    data = b"".join(made.chunks)
    assert split_wire(data, LAYOUT) == made.chunks
    assert from_chunks(split_wire(data, LAYOUT), LAYOUT) == made
    for other in (data[:-1], data + b"\0", b""):
        with pytest.raises(WireError, match="132 expected"):
            split_wire(other, LAYOUT)


def test_exactly_the_scales_that_some_block_has_are_taken() -> None:
    """All 2^23 mantissas: a quotient absmax / 127 survives times 127, over 127; the other scales do not."""
    peaks = np.arange(1 << 23, dtype=np.uint32) + np.uint32(0x3F800000)
    scales = peaks.view(np.float32) / np.float32(127)
    assert (scales * np.float32(127) / np.float32(127) == scales).all()
    some = np.uint32(0x3F800000 + 0x10).view(np.float32)
    while some * np.float32(127) / np.float32(127) == some:
        some = np.nextafter(some, np.float32(2))
    with pytest.raises(WireError, match="a scale that no block has"):
        parse_chunk(np.full(3, some).astype("<f4").tobytes() + bytes([127]) * 40, ONE, 0).decode()
