"""What every codec promises, for each in CODECS: one suite, a row a codec."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import RUN

from distributed_training.averaging.codecs.base import HEAD_BYTES, Codec, Layout, Vector, head, wire_bytes
from distributed_training.averaging.codecs.known import CODECS, codec
from distributed_training.averaging.combine import ChunkReducer
from distributed_training.averaging.contribution import encode_contribution, from_chunks, split_wire
from distributed_training.errors import ConfigError, WireError
from distributed_training.protocol.rules import weighting
from distributed_training.protocol.sections import AverageSection

LENGTHS = (1, 2, 15, 16, 63, 64, 65, 127, 128, 129, 300, 4095, 4096, 4097, 8192, 9000)
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
every = pytest.mark.parametrize("kind", CODECS, ids=lambda kind: kind.name)


def one(length: int) -> Layout:
    """A vector of one chunk."""
    return Layout(length, length, 16)


def normal(seed: int, size: int, scale: float = 1.0) -> Vector:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def odd(seed: int, size: int) -> Vector:
    """Numbers of all sizes, many equal, many zero, of either sign."""
    rng = np.random.default_rng(seed)
    wide = rng.choice([-1.0, 1.0], size) * 10.0 ** rng.uniform(-46, 38.4, size)
    few = rng.choice([0.0, -0.0, 1.0, -1.0, 1e-30, 3e38], size)
    return np.where(rng.random(size) < rng.random(), wide, few).astype(np.float32)


def encode(kind: Codec, values: Vector) -> bytes:
    return kind.encoder(one(len(values))).encode(values).data


def decode(kind: Codec, data: bytes, length: int) -> Vector:
    return kind.parse(data, one(length), 0).decode()


def test_names_are_those_of_manifests_and_each_codec_has_its_own() -> None:
    fields = AverageSection.model_fields
    assert {c.name for c in CODECS} == set(get_args(fields["uplink"].annotation))
    assert set(get_args(fields["output"].annotation)) <= {c.name for c in CODECS}
    assert len({c.id for c in CODECS}) == len(CODECS) and all(0 < c.id < 1 << 16 for c in CODECS)
    assert [codec(c.name) for c in CODECS] == list(CODECS)
    with pytest.raises(ConfigError, match="codec fp7: not known; expected one of int8"):
        codec("fp7")


# --- sizes and spelling ------------------------------------------------------------------------------


@every
def test_sizes_follow_from_the_layout(kind: Codec) -> None:
    for length in (*range(1, 200), *LENGTHS):
        assert len(encode(kind, normal(1, length))) == kind.chunk_bytes(one(length), 0)
    layout = Layout(100, 40, 16)  # the last chunk is short
    made = encode_contribution(normal(2, 100), layout, kind)
    assert [len(c) for c in made.chunks] == [kind.chunk_bytes(layout, c) for c in range(3)]
    data = b"".join(made.chunks)
    assert len(data) == wire_bytes(kind, layout) and split_wire(data, layout, kind) == made.chunks
    assert from_chunks(made.chunks, layout, kind) == made
    with pytest.raises(WireError, match=f"{len(data)} expected"):
        split_wire(data + b"\0", layout, kind)


@every
def test_what_was_decoded_is_encoded_to_the_same_bytes(kind: Codec) -> None:
    for length, make in product(LENGTHS, (normal, odd)):
        values = make(length, length)
        before = values.tobytes()
        data = encode(kind, values)
        found = decode(kind, data, length)
        assert values.tobytes() == before, "the encoder changed what it was given"
        assert found.shape == (length,) and found.dtype == np.float32 and np.isfinite(found).all()
        assert not ((found != 0) & (np.abs(found) < 2.0**-126)).any(), "subnormal"
        assert encode(kind, found) == data


@every
@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, st.sampled_from([1, 17, 40, 130, 200]), elements=any_float))
def test_the_same_for_whatever_hypothesis_finds(kind: Codec, values: Vector) -> None:
    data = encode(kind, values)
    found = decode(kind, data, len(values))
    assert np.isfinite(found).all() and encode(kind, found) == data
    chunk = kind.parse(data, one(len(values)), 0)
    # Nothing gets longer than its rounding allows, whatever saturates or is left out.
    length = math.sqrt(math.fsum(float(v) ** 2 for v in values))
    assert chunk.norm() <= (1 + 1e-6) * (length + chunk.rounding_norm())


@every
def test_a_chunk_is_none_of_the_encoders_memory(kind: Codec) -> None:
    """One encoder for all chunks: none leaves anything in the next, and what it gave stays."""
    layout = Layout(9300, 4200, 16)
    values = normal(4, 9300)
    values[5000] = 1e30
    encoder = kind.encoder(layout)
    made = [encoder.encode(values[slice(*layout.coords(c))]) for c in (0, 1, 2, 0)]
    for c, chunk in zip((0, 1, 2, 0), made, strict=True):
        part = values[slice(*layout.coords(c))].copy()
        parsed = kind.parse(chunk.data, layout, c)
        assert chunk.data == encode(kind, part) and chunk == parsed
        assert (chunk.norm(), chunk.rounding_norm()) == (parsed.norm(), parsed.rounding_norm())


@every
def test_bytes_depend_on_numbers_alone(kind: Codec) -> None:
    values = normal(3, 9000)
    apart = np.zeros((9000, 3), np.float32)
    apart[:, 1] = values
    shifted = np.frombuffer(b"\0" * 4 + values.tobytes(), np.float32)[1:]
    expected = encode(kind, values)
    assert encode(kind, apart[:, 1]) == encode(kind, shifted) == expected
    layout = Layout(20_000, 4096, 512)
    alone = encode_contribution(normal(3, 20_000), layout, kind)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: encode_contribution(normal(3, 20_000), layout, kind), range(8)))
    assert all(made == alone for made in together)


@every
def test_decoding_goes_where_it_is_told(kind: Codec) -> None:
    for length in (64, 129, 4097, 9000):
        chunk = kind.parse(encode(kind, normal(6, length)), one(length), 0)
        expected = chunk.decode()
        for offset in (0, 1, 3):
            memory = np.full(length + 9, np.nan, np.float32)
            found = chunk.decode(memory[offset:])
            assert found.tobytes() == expected.tobytes() == memory[offset : offset + length].tobytes()
            assert np.isnan(memory[offset + length :]).all() and np.isnan(memory[:offset]).all()


# --- numbers at the edges ----------------------------------------------------------------------------


@every
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, -1e-38, 9e-31])
def test_tiny_numbers_are_plain_zeros(kind: Codec, tiny: float) -> None:
    data = encode(kind, np.full(200, tiny, np.float32))
    assert data == encode(kind, np.zeros(200, np.float32))
    chunk = kind.parse(data, one(200), 0)
    assert chunk.decode().tobytes() == bytes(800) and chunk.norm() == chunk.rounding_norm() == 0.0


@every
@pytest.mark.parametrize("huge", [1.3e32, 3.4e38])
def test_huge_numbers_saturate_and_stay_finite(kind: Codec, huge: float) -> None:
    values = np.zeros(200, np.float32)
    values[[3, 77, 130]] = huge, -huge, huge
    chunk = kind.parse(encode(kind, values), one(200), 0)
    found = chunk.decode()
    assert np.isfinite(found).all() and math.isfinite(chunk.norm()) and np.abs(found).max() >= 1e30
    assert np.sign(found[[3, 77, 130]]).tolist() == [1, -1, 1]


@every
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_encoded(kind: Codec, bad: float) -> None:
    for at in (0, 199):
        values = normal(1, 200)
        values[at] = bad
        with pytest.raises(ValueError, match="non-finite"):
            encode(kind, values)


# --- norms and sums ----------------------------------------------------------------------------------


@every
def test_norms_are_those_of_what_is_decoded(kind: Codec) -> None:
    for length, make in product((1, 40, 129, 4097), (normal, odd)):
        chunk = kind.parse(encode(kind, make(7, length)), one(length), 0)
        norm = chunk.norm()
        assert norm == float(np.float32(norm)) and (norm == 0 or norm >= 2.0**-126)
        square = sum((Fraction(float(v)) ** 2 for v in chunk.decode()), Fraction())
        # Codes times scales exactly, before any product is rounded to fp32: so far apart at most.
        assert abs(Fraction(norm) ** 2 - square) <= square / (1 << 21)


@every
def test_adding_is_decoding_multiplying_and_adding(kind: Codec) -> None:
    for length, make in product((1, 129, 4096, 9000), (normal, odd)):
        total, memory = np.zeros(length, np.float32), np.empty(length + 5, np.float32)
        literal = total.copy()
        with np.errstate(under="ignore", over="ignore"):
            for seed, share in enumerate((0.25, 1e-30, 0.75, 0.0)):
                chunk = kind.parse(encode(kind, make(seed, length)), one(length), 0)
                chunk.add_to(total, np.float32(share), memory)
                literal = literal + chunk.decode() * np.float32(share)
        assert total.tobytes() == literal.astype(np.float32).tobytes()


def most_rounded(_: int, length: int) -> Vector:
    """All that is not the largest lies just above a half: rounding lengthens it as far as it can."""
    values = np.full(length, 0.5001, np.float32)
    values[:: 1 + length // 3] = 7.0
    return values


@pytest.mark.parametrize("make", [normal, odd, most_rounded])
@pytest.mark.parametrize(("uplink", "output"), list(product(CODECS, CODECS)), ids=lambda kind: kind.name)
def test_honest_outputs_pass_the_norm_gate_whatever_is_mixed(uplink: Codec, output: Codec, make) -> None:
    """The mean of uplink chunks, encoded once as outputs are, is never zeroed for its rounding."""
    average = replace_average(gate_factor=1.0 + 1e-5)  # recipes leave 1.02
    for length in (1, 40, 129, 700, 4300):
        sent = [uplink.parse(encode(uplink, make(seed, length)), one(length), 0) for seed in range(3)]
        raw = [1.0, 0.5, 2.0]
        with np.errstate(under="ignore"):
            made = ChunkReducer(one(length), output).reduce(0, list(zip(raw, sent, strict=True)))
            literal: Vector = np.zeros(length, np.float32)
            for share, chunk in zip(weighting.shares(raw), sent, strict=True):
                literal += chunk.decode() * share
        assert made.data == encode(output, literal)
        pairs = [(a, chunk.norm()) for a, chunk in zip(raw, sent, strict=True)]
        assert weighting.passes_gate(made.norm(), made.rounding_norm(), pairs, average)


def replace_average(**changes: float) -> AverageSection:
    return RUN.average.model_copy(update=changes)


@every
def test_rounding_is_a_part_of_the_norm_at_most(kind: Codec) -> None:
    """What a liar may add to an output: less than half of what it has, however it is spelled."""
    for values in (most_rounded(0, 512), normal(1, 512), odd(2, 512), np.eye(1, 512, dtype=np.float32)[0]):
        chunk = kind.parse(encode(kind, values), one(512), 0)
        assert chunk.rounding_norm() <= 0.43 * chunk.norm()


# --- foreign bytes -----------------------------------------------------------------------------------


def only_canonical(kind: Codec, data: bytes, length: int) -> bool:
    """False: refused. What is taken is finite and the only spelling of what it says."""
    try:
        chunk = kind.parse(data, one(length), 0)
    except WireError:
        return False
    found = chunk.decode()
    assert np.isfinite(found).all() and math.isfinite(chunk.norm()) and math.isfinite(chunk.rounding_norm())
    assert encode(kind, found) == data, "two spellings of one chunk were taken"
    return True


@every
def test_every_flipped_bit_is_refused_or_another_chunk(kind: Codec) -> None:
    for length, make in product((1, 65, 129, 4097), (normal, odd, most_rounded)):
        good = encode(kind, make(8, length))
        assert only_canonical(kind, good, length)
        for bit in range(0, 8 * len(good), 1 if len(good) < 400 else 37):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            only_canonical(kind, bytes(bad), length)


@every
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_patched_and_arbitrary_bytes_are_refused_or_canonical(kind: Codec, data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([40, 129, 200]))
    good = bytearray(encode(kind, data.draw(st.sampled_from([normal, odd]))(1, length)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good)))
        good[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    else:
        good = bytearray(head(kind.id)) + data.draw(st.binary(max_size=len(good)))
    only_canonical(kind, bytes(good), length)


@every
def test_other_lengths_and_other_codecs_are_refused_by_name(kind: Codec) -> None:
    good = encode(kind, normal(1, 129))
    for other in (good[:-1], good + b"\0", good[:HEAD_BYTES], good[:2], b""):
        with pytest.raises(WireError, match=rf"chunk 0: {len(other)} bytes, {len(good)} expected"):
            kind.parse(other, one(129), 0)
    for stranger in (head(99), *(head(c.id) for c in CODECS if c is not kind)):
        with pytest.raises(WireError, match=rf"chunk 0: of codec \d+, {kind.id} \({kind.name}\) expected"):
            kind.parse(stranger + good[HEAD_BYTES:], one(129), 0)
        with pytest.raises(WireError, match="of codec"):
            from_chunks([stranger + good[HEAD_BYTES:]], one(129), kind)
