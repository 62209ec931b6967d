"""The bytes of each codec, spelled by hand, and what no encoder writes. What all promise: test_codec_contract.py."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distributed_training.averaging.codecs.base import Codec, Layout, Vector, head, wire_bytes
from distributed_training.averaging.codecs.int4 import INT4
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.codecs.known import CODECS
from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.errors import WireError

LAYOUT = Layout(num_coords=100, chunk_coords=40, block_coords=16)  # chunks of 40, 40, 20; blocks of 16, 16, 8 | 16, 4
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
Numbers = list[Fraction]


def one(length: int) -> Layout:
    return Layout(length, length, 16)


def encode(kind: Codec, values: Vector) -> bytes:
    return kind.encoder(one(len(values))).encode(values).data


def normal(seed: int, size: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


# --- what the bytes say, one number after the other --------------------------------------------------


def literal_int8(data: bytes, length: int) -> Numbers:
    blocks = -(-length // 16)
    scales = [Fraction(s) for s in struct.unpack_from(f"<{blocks}f", data, 4)]
    return [scales[i // 16] * code for i, code in enumerate(struct.unpack_from(f"{length}b", data, 4 + 4 * blocks))]


def literal_int4(data: bytes, length: int) -> Numbers:
    blocks = -(-length // 128)
    scales = [Fraction(s) for s in struct.unpack_from(f"<{blocks}f", data, 4)]
    halves = [half - 8 for byte in data[4 + 4 * blocks :] for half in (byte & 15, byte >> 4)]
    return [scales[i // 128] * halves[i] for i in range(length)]


def literal_sparse(data: bytes, length: int) -> Numbers:
    numbers, at = list[Fraction](), 4
    for start in range(0, length, 4096):
        coords = min(4096, length - start)
        kept, groups, block = kept_of(coords), -(-coords // 32), [Fraction()] * coords
        (scale,) = struct.unpack_from("<f", data, at)
        many = -(-(7 * kept + groups) // 8)
        bits = [byte >> b & 1 for byte in data[at + 4 : at + 4 + many] for b in range(8)]
        at += 4 + many
        low, high, negative = bits[: 5 * kept], bits[5 * kept : 6 * kept + groups], bits[6 * kept + groups :]
        for i, one_at in enumerate(at for at, bit in enumerate(high) if bit):
            place = 32 * (one_at - i) + sum(low[5 * i + b] << b for b in range(5))
            block[place] = Fraction(-scale if negative[i] else scale)
        numbers += block
    return numbers


def kept_of(coords: int) -> int:
    """Of a block."""
    return -(-75 * coords // 4096)


LITERAL = {INT8: literal_int8, INT4: literal_int4, SPARSE: literal_sparse}


@pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_numbers_and_norms_are_those_of_exact_arithmetic(kind: Codec, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float32, st.sampled_from([1, 40, 130, 300]), elements=any_float))
    chunk = kind.parse(encode(kind, values), one(len(values)), 0)
    exact = LITERAL[kind](chunk.data, len(values))
    assert chunk.decode().tolist() == [float(np.float32(float(number))) for number in exact]
    norm, square = chunk.norm(), sum((number**2 for number in exact), Fraction())
    below, above = (Fraction(float(np.nextafter(np.float32(norm), np.float32(x)))) for x in (-np.inf, np.inf))
    slack = 1 + Fraction(1, 1 << 50)  # norm is the nearest fp32, up to float64 rounding
    assert max((below + Fraction(norm)) / 2, Fraction()) ** 2 <= square * slack
    assert square <= ((above + Fraction(norm)) / 2) ** 2 * slack


def test_long_sparse_chunks_say_the_same() -> None:
    values = normal(1, 9000)
    chunk = SPARSE.parse(encode(SPARSE, values), one(9000), 0)
    assert chunk.decode().tolist() == [float(np.float32(float(number))) for number in literal_sparse(chunk.data, 9000)]


# --- canonical bytes ---------------------------------------------------------------------------------


def test_layout_covers_every_coordinate_once() -> None:
    assert [LAYOUT.coords(c) for c in range(LAYOUT.num_chunks)] == [(0, 40), (40, 80), (80, 100)]
    assert [LAYOUT.num_blocks(c) for c in range(3)] == [3, 3, 2]
    assert Layout(80, 40, 16).num_chunks == 2  # no empty chunk at the end


def test_sizes() -> None:
    assert [INT8.chunk_bytes(LAYOUT, c) for c in range(3)] == [56, 56, 32] and wire_bytes(INT8, LAYOUT) == 144
    assert [INT4.chunk_bytes(LAYOUT, c) for c in range(3)] == [28, 28, 18]
    assert [SPARSE.chunk_bytes(LAYOUT, c) for c in range(3)] == [10, 10, 9]
    whole = Layout(1 << 18, 1 << 18, 512)
    bits = [8 * wire_bytes(kind, whole) / whole.num_coords for kind in CODECS]
    assert bits[0] < 8.07 and bits[1] < 4.3 and bits[2] < 0.17


def test_int8() -> None:
    values = np.array([127, -63.5, 0.4, 0.6, 1.5, 2.5], np.float32)
    layout = Layout(6, 6, 4)
    data = INT8.encoder(layout).encode(values).data
    second = np.float32(2.5) / np.float32(127)
    assert data == struct.pack("<Iff6b", 1, 1.0, second, 127, -64, 0, 1, 76, 127)  # rounds half to even
    assert INT8.parse(data, layout, 0).decode().tolist() == [127, -64, 0, 1, float(np.float32(76) * second), 2.5]


def test_int4() -> None:
    values = np.zeros(131, np.float32)
    values[:4] = 7, -7, 2.5, 3.5  # rounds half to even
    values[128:] = -14, 2, 0
    data = encode(INT4, values)
    codes = bytes([15 | 1 << 4, 10 | 12 << 4]) + b"\x88" * 62 + bytes([1 | 9 << 4, 8 | 8 << 4])
    assert data == struct.pack("<Iff", 2, 1.0, 2.0) + codes
    assert INT4.parse(data, one(131), 0).decode()[[0, 1, 2, 3, 128, 129, 130]].tolist() == [7, -7, 2, 4, -14, 2, 0]


def test_sparse() -> None:
    values = np.zeros(130, np.float32)  # three are kept
    values[[3, 70, 129]] = -1.0, 0.5, 0.75
    data = encode(SPARSE, values)
    low, high, negative = 3 | 70 % 32 << 5 | 129 % 32 << 10, 1 << 0 | 1 << 2 + 1 | 1 << 4 + 2, 0b001
    assert data == struct.pack("<If", 3, 0.75) + (low | high << 15 | negative << 15 + 8).to_bytes(4, "little")
    assert SPARSE.parse(data, one(130), 0).decode()[[3, 70, 129]].tolist() == [-0.75, 0.75, 0.75]


def test_of_equals_the_first_are_kept_and_zeros_keep_the_first_places() -> None:
    for size in (130, 4096, 4100):
        found = SPARSE.parse(encode(SPARSE, np.full(size, -2, np.float32)), one(size), 0).decode()
        expected = np.zeros(size)
        for at in range(0, size, 4096):
            expected[at : at + kept_of(min(4096, size - at))] = -2
        assert found.tolist() == expected.tolist()
    values = np.ones(4096, np.float32)
    values[4000:4074] = 2  # one place is left for those that are equal
    found = SPARSE.parse(encode(SPARSE, values), one(4096), 0).decode()
    assert np.flatnonzero(found).tolist() == [0, *range(4000, 4074)]
    assert len(set(found[found != 0].tolist())) == 1 and found[0] == pytest.approx(149 / 75, rel=1e-6)
    zeros = encode(SPARSE, np.zeros(130, np.float32))
    assert zeros == head(3) + bytes(4) + (1 << 5 | 2 << 10 | 0b111 << 15).to_bytes(4, "little")


def test_what_is_kept_is_what_a_stable_sort_keeps() -> None:
    rng = np.random.default_rng(5)
    for size in (64, 65, 777, 4096, 5000):
        for values in (rng.standard_normal(size), rng.integers(-5, 6, size), 10.0 ** rng.uniform(-44, 38, size)):
            values = values.astype(np.float32)
            found = SPARSE.parse(encode(SPARSE, values), one(size), 0).decode()
            for start in range(0, size, 4096):
                block = values[start : start + 4096]
                order = np.argsort(-np.abs(block), kind="stable")[: kept_of(len(block))]
                assert np.flatnonzero(found[start : start + 4096]).tolist() == sorted(order.tolist())


@settings(max_examples=100)
@given(hnp.arrays(np.float32, 40, elements=st.floats(-(2.0**60), 2.0**60, width=32)))
def test_integer_codes_err_by_half_a_step(values: Vector) -> None:
    for kind, blocks, size, tiny in ((INT8, 3, 16, 1.27e-28), (INT4, 1, 128, 7e-30)):
        data = encode(kind, values)
        scales = np.repeat(np.frombuffer(data, "<f4", blocks, 4), size)[:40].astype(np.float64)
        error = np.abs(kind.parse(data, one(40), 0).decode().astype(np.float64) - values)
        bound = np.where(scales > 0, 0.5001 * scales, tiny)
        assert (error <= bound + 1e-6 * np.abs(values)).all()


# --- what no encoder writes --------------------------------------------------------------------------


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flipped(data: bytes, bit: int) -> bytes:
    """One bit behind the scale of a chunk's first block."""
    return patched(data, 8 + bit // 8, bytes([data[8 + bit // 8] ^ 1 << bit % 8]))


def bad_scales(data: bytes) -> Iterator[tuple[str, str, bytes]]:
    wrong = (-1.0, 9e-31, 1e-40, 1.1e30, 3e38, math.nan, math.inf)
    yield from (("a scale is negative", f"scale {s}", patched(data, 4, struct.pack("<f", s))) for s in wrong)


INT8_GOOD, INT4_GOOD = encode(INT8, normal(5, 40)), encode(INT4, normal(5, 41))
SPARSE_GOOD, SPARSE_ZERO = (
    encode(SPARSE, np.arange(1, 331, dtype=np.float32)),
    encode(SPARSE, np.zeros(330, np.float32)),
)
# Of 330 coordinates 7 are kept: scale 4, then 35 bits low, 18 high, 7 negative, 4 of nothing; here places 323 to 329.
REFUSED = (
    *((INT8, 40, *bad) for bad in bad_scales(INT8_GOOD)),
    (INT8, 40, "a scale is negative", "negative zero", patched(patched(INT8_GOOD, 4, b"\0\0\0\x80"), 16, bytes(16))),
    (INT8, 40, "the largest code", "codes under a zero scale", patched(INT8_GOOD, 4, bytes(4))),
    (INT8, 40, "code -128", "code -128", patched(INT8_GOOD, 16, b"\x80")),
    (INT8, 40, "the largest code", "no code of 127", patched(INT8_GOOD, 16, bytes(16))),
    *((INT4, 41, *bad) for bad in bad_scales(INT4_GOOD)),
    (INT4, 41, "a scale is negative", "negative zero", patched(INT4_GOOD, 4, b"\0\0\0\x80" + b"\x88" * 21)),
    (INT4, 41, "the largest code", "codes under a zero scale", patched(INT4_GOOD, 4, bytes(4))),
    (INT4, 41, "code -8", "code -8", patched(INT4_GOOD, 9, b"\x80")),
    (INT4, 41, "the largest code", "no code of 7", patched(INT4_GOOD, 8, b"\x88" * 21)),
    (INT4, 41, "beyond its last", "a code after the last", patched(INT4_GOOD, 28, bytes([INT4_GOOD[28] ^ 0x10]))),
    *((SPARSE, 330, *bad) for bad in bad_scales(SPARSE_GOOD)),
    (SPARSE, 330, "a scale is negative", "negative zero", patched(SPARSE_ZERO, 4, b"\0\0\0\x80")),
    (SPARSE, 330, "spelled otherwise", "numbers under zero", patched(SPARSE_GOOD, 4, bytes(4))),
    (SPARSE, 330, "another number of places", "six places", flipped(SPARSE_GOOD, 35 + 10)),
    (SPARSE, 330, "another number of places", "eight places", flipped(SPARSE_GOOD, 35)),
    (SPARSE, 330, "end beyond", "a place beyond", flipped(SPARSE_GOOD, 34)),
    (SPARSE, 330, "do not ascend", "one place twice", flipped(SPARSE_GOOD, 5)),
    (SPARSE, 330, "stands for nothing", "a sign of no place", flipped(SPARSE_GOOD, 60)),
    (SPARSE, 330, "spelled otherwise", "a negative zero", flipped(SPARSE_ZERO, 53)),
    (SPARSE, 330, "spelled otherwise", "zeros elsewhere", flipped(SPARSE_ZERO, 34)),
)


@pytest.mark.parametrize(("kind", "length", "problem", "name", "data"), REFUSED, ids=lambda value: str(value)[:24])
def test_bytes_that_no_encoder_writes_are_refused(
    kind: Codec, length: int, problem: str, name: str, data: bytes
) -> None:
    with pytest.raises(WireError, match=f"chunk 0: .*{problem}"):
        kind.parse(data, one(length), 0)


@pytest.mark.parametrize(("kind", "largest"), [(INT8, 127), (INT4, 7)], ids=["int8", "int4"])
def test_exactly_the_scales_that_some_block_has_are_taken(kind: Codec, largest: int) -> None:
    """All 2^23 mantissas: a quotient absmax / 127 survives times 127, over 127; the other scales do not."""
    peaks = np.arange(1 << 23, dtype=np.uint32) + np.uint32(0x3F800000)
    scales = peaks.view(np.float32) / np.float32(largest)
    assert (scales * np.float32(largest) / np.float32(largest) == scales).all()
    some = np.uint32(0x3F800000 + 0x10).view(np.float32)
    while some * np.float32(largest) / np.float32(largest) == some:
        some = np.nextafter(some, np.float32(2))
    good = encode(kind, np.full(16, largest, np.float32))
    with pytest.raises(WireError, match="a scale that no block has"):
        kind.parse(patched(good, 4, some.astype("<f4").tobytes()), one(16), 0)
