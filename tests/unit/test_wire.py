from __future__ import annotations

import dataclasses
import math
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ACCUSATION, CARRY, LEFT, OUTPUT, STEPS, WORK, key

from distributed_training.errors import WireError
from distributed_training.protocol import wire
from distributed_training.protocol.rules.slices import FAILED_ROUNDS
from distributed_training.protocol.types import (
    NO_ROOT,
    Carry,
    Left,
    OutputRecord,
    Signed,
    StepRecord,
    WorkRecord,
)

SHAPE = {"max_pages": 2, "max_steps": 4, "batch_size": 2, "groups": 2, "sketch_size": 3}
digests = st.binary(min_size=32, max_size=32)
u16, u32, u64 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)
# Finite numbers by their bits: every one is reached, none is filtered out.
halves = st.builds(
    lambda m, s: float(np.uint16(m | s << 15).view(np.float16)), st.integers(0, 0x7BFF), st.integers(0, 1)
)
positives = st.integers(0, 0x7F7FFFFF).map(lambda bits: float(np.uint32(bits).view(np.float32)))
norms = st.just(0.0) | st.integers(0x00800000, 0x7F7FFFFF).map(lambda bits: float(np.uint32(bits).view(np.float32)))

works = st.builds(
    WorkRecord, manifest=digests, round=u32, uid=u16, public_key=digests, state_root=digests, steps=u32, tokens=u64,
    pages_root=digests, log_root=digests, wire_root=digests, codec=st.integers(0, 255),
    feedback_start=digests, feedback_end=digests,
    began_at=digests, shift_step=u32,
    chunk_norms=st.lists(norms, max_size=6).map(tuple),
)  # fmt: skip


@st.composite
def outputs(draw: st.DrawFn) -> OutputRecord:
    senders = draw(st.lists(digests, min_size=1, max_size=17))
    row = st.lists(st.booleans(), min_size=len(senders), max_size=len(senders)).map(tuple)
    included = draw(st.lists(row, min_size=1, max_size=4))
    return OutputRecord(
        draw(digests),
        draw(u32),
        draw(u16),
        draw(digests),
        draw(digests),
        draw(digests),
        tuple(senders),
        tuple(included),
    )


@st.composite
def logs(draw: st.DrawFn) -> tuple[StepRecord, ...]:
    def halfs(count: int) -> tuple[float, ...]:
        return tuple(draw(st.lists(halves, min_size=count, max_size=count)))

    return tuple(
        StepRecord(i, halfs(2), draw(positives), (halfs(3), halfs(3)))
        for i in range(draw(st.integers(0, SHAPE["max_steps"])))
    )


keys = st.lists(digests, max_size=3).map(tuple)
lefts = st.builds(Left, digests, digests.filter(any), st.integers(0, 7))


def by_key(left: Left) -> bytes:
    return left.public_key


carries = st.builds(
    Carry,
    st.floats(min_value=1e-300, max_value=1e300),
    st.lists(keys, max_size=8).map(tuple),
    st.lists(lefts, max_size=4, unique_by=by_key).map(lambda made: tuple(sorted(made, key=by_key))),
)


PAGES = (key(1, "page"), key(2, "page"))


def decode_log(data: bytes) -> tuple[tuple[bytes, ...], tuple[StepRecord, ...]]:
    return wire.decode_log(data, **SHAPE)


def steps_log(steps: Sequence[StepRecord]) -> bytes:
    return wire.encode_log(PAGES, steps)


# --- what is encoded comes back ------------------------------------------------------------------


@settings(max_examples=50)
@given(works)
def test_work_record_round_trip(record: WorkRecord) -> None:
    assert wire.decode_work(wire.encode_work(record)) == record


@settings(max_examples=50)
@given(outputs())
def test_output_record_round_trip(record: OutputRecord) -> None:
    assert wire.decode_output(wire.encode_output(record)) == record


@settings(max_examples=50)
@given(logs())
def test_log_round_trip(steps: tuple[StepRecord, ...]) -> None:
    data = steps_log(steps)
    assert decode_log(data) == (PAGES, steps)
    assert data[4 + 64 + 4 :] == b"".join(wire.encode_step(s) for s in steps)


@settings(max_examples=50)
@given(carries)
def test_carry_round_trip(carry: Carry) -> None:
    assert wire.decode_carry(wire.encode_carry(carry)) == carry


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=80), st.binary(min_size=64, max_size=64))
def test_signed_round_trip(body: bytes, signature: bytes) -> None:
    assert wire.decode_signed(wire.encode_signed(Signed(body, signature))) == Signed(body, signature)


@settings(max_examples=50)
@given(digests, st.binary(min_size=64, max_size=64), st.binary(max_size=40))
def test_request_round_trip(public_key: bytes, binding: bytes, payload: bytes) -> None:
    assert wire.decode_request(wire.encode_request(public_key, binding, payload)) == (public_key, binding, payload)


# --- foreign bytes: WireError or a record that encodes to the same bytes -------------------------

Codec = tuple[Callable[[bytes], Any], Callable[[Any], bytes]]
CODECS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes], bytes]] = {
    "work": (wire.decode_work, wire.encode_work, wire.encode_work(WORK)),
    "output": (wire.decode_output, wire.encode_output, wire.encode_output(OUTPUT)),
    "log": (decode_log, lambda made: wire.encode_log(*made), steps_log(STEPS)),
    "accusation": (wire.decode_accusation, wire.encode_accusation, wire.encode_accusation(ACCUSATION)),
    "carry": (wire.decode_carry, wire.encode_carry, wire.encode_carry(CARRY)),
    "carry with feedback": (wire.decode_carry, wire.encode_carry, wire.encode_carry(LEFT)),
    "signed": (wire.decode_signed, wire.encode_signed, wire.encode_signed(Signed(b"body", bytes(64)))),
    "request": (
        wire.decode_request,
        lambda r: wire.encode_request(*r),
        wire.encode_request(key(1), bytes(64), b"what"),
    ),
}
named = pytest.mark.parametrize("name", CODECS)


def decodes_strictly(name: str, data: bytes) -> None:
    decode, encode, _ = CODECS[name]
    try:
        record = decode(data)
    except WireError:
        return
    assert encode(record) == data


@named
@settings(max_examples=60)
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    decodes_strictly(name, data)


@named
@settings(max_examples=100)
@given(data=st.data())
def test_mutated_bytes(name: str, data: st.DataObject) -> None:
    good = CODECS[name][2]
    at = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    decodes_strictly(name, good[:at] + patch + good[at + len(patch) :])
    decodes_strictly(name, good[:at] + patch + good[at:])


@named
def test_every_truncation_is_refused_where_the_length_is_implied(name: str) -> None:
    decode, _, good = CODECS[name]
    needed = {"signed": 65, "request": 96}.get(name, len(good))
    for length in range(needed):
        with pytest.raises(WireError):
            decode(good[:length])


@pytest.mark.parametrize("name", ["work", "output", "log", "carry", "carry with feedback"])
def test_trailing_bytes_are_refused(name: str) -> None:
    decode, _, good = CODECS[name]
    decode(good)
    with pytest.raises(WireError, match="1 bytes too many"):
        decode(good + b"\0")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), -1.0])
def test_numbers_that_cannot_be(bad: float) -> None:
    with pytest.raises(WireError, match=r"norm|non-finite"):
        wire.decode_work(wire.encode_work(dataclasses.replace(WORK, chunk_norms=(1.0, bad))))
    with pytest.raises(WireError, match="gradient norm"):
        decode_log(steps_log([dataclasses.replace(STEPS[0], grad_norm=bad)]))
    with pytest.raises(WireError, match="clip threshold"):
        wire.decode_carry(wire.encode_carry(Carry(bad, ())))
    if not np.isfinite(bad):
        with pytest.raises(WireError, match="non-finite"):
            decode_log(steps_log([dataclasses.replace(STEPS[0], losses=(bad, 0.0))]))
        with pytest.raises(WireError, match="non-finite"):
            decode_log(steps_log([dataclasses.replace(STEPS[0], sketch=((0, 0, 0), (0, 0, bad)))]))


def test_a_clip_threshold_of_zero_is_refused() -> None:
    with pytest.raises(WireError, match="clip threshold"):
        wire.decode_carry(wire.encode_carry(Carry(0.0, ())))


@pytest.mark.parametrize(
    "other", [{"max_pages": 1}, {"max_steps": 1}, {"batch_size": 1}, {"groups": 1}, {"sketch_size": 2}]
)
def test_a_log_of_another_shape_is_refused(other: dict[str, int]) -> None:
    with pytest.raises(WireError, match="step log"):
        wire.decode_log(steps_log(STEPS), **(SHAPE | other))


def test_steps_must_be_numbered_from_zero_without_a_gap() -> None:
    for steps in (STEPS[1:], STEPS[::-1], (STEPS[0], STEPS[0])):
        with pytest.raises(WireError, match="wrong number"):
            decode_log(steps_log(steps))


def test_padding_bits_of_a_bitmap_are_refused() -> None:
    data = bytearray(wire.encode_output(OUTPUT))  # 9 senders: 7 padding bits in the last byte of a row
    for bit in range(7):
        data[-1] ^= 1 << bit
        with pytest.raises(WireError, match="padding"):
            wire.decode_output(bytes(data))
        data[-1] ^= 1 << bit


@pytest.mark.parametrize("tag", [b"DTW1", b"DTO1", b"\0\0\0\0"])
def test_another_record_is_not_a_work_record(tag: bytes) -> None:
    with pytest.raises(WireError, match="wrong tag"):
        wire.decode_work(tag + wire.encode_work(WORK)[4:])


def test_records_do_not_decode_as_one_another() -> None:
    for name in CODECS.keys() - {"signed", "request", "output"}:
        with pytest.raises(WireError):
            wire.decode_output(CODECS[name][2])


def head_of_output(senders: int, chunks: int) -> bytes:
    return struct.pack("<4s32sIH32s32sHI", b"DTO1", bytes(32), 0, 0, bytes(32), bytes(32), senders, chunks)


SAID = {
    "nobody": (),
    "out of order": LEFT.left[::-1],
    "twice": (LEFT.left[0], LEFT.left[0]),
    "nothing": (dataclasses.replace(LEFT.left[0], root=NO_ROOT),),
    "too long ago": (dataclasses.replace(LEFT.left[0], age=FAILED_ROUNDS),),
}


@pytest.mark.parametrize("what", SAID)
def test_what_senders_left_out_has_one_spelling(what: str) -> None:
    good, count = wire.encode_carry(LEFT), len(LEFT.left)
    bare = good[: -65 * count - 2]
    assert wire.encode_carry(CARRY) == bare[:8] + b"\3" + bare[9:], "it costs nothing where there is none"
    said = SAID[what]
    with pytest.raises(WireError, match="carry: "):
        wire.decode_carry(
            bare + struct.pack("<H", len(said)) + b"".join(x.public_key + x.root + bytes([x.age]) for x in said)
        )


def head_of_work(chunks: int) -> bytes:
    good = wire.encode_work(dataclasses.replace(WORK, chunk_norms=()))
    return good[:-4] + struct.pack("<I", chunks)


LIES = {
    "work, 2^32 chunks": (wire.decode_work, head_of_work(0xFFFFFFFF)),
    "work, allowed number": (wire.decode_work, head_of_work(wire.MAX_CHUNKS)),
    "output, 2^32 chunks": (wire.decode_output, head_of_output(1, 0xFFFFFFFF) + bytes(32)),
    "output, 65535 senders": (wire.decode_output, head_of_output(0xFFFF, 1)),
    "output, allowed numbers": (wire.decode_output, head_of_output(wire.MAX_SENDERS, wire.MAX_CHUNKS)),
    "output, rows of nothing": (wire.decode_output, head_of_output(0, wire.MAX_CHUNKS)),
    "output, no row": (wire.decode_output, head_of_output(1, 0) + bytes(32)),
    "carry, 255 rounds": (wire.decode_carry, struct.pack("<dB", 1.0, 255) + bytes(2 * 255)),
    "carry, 65535 keys": (wire.decode_carry, struct.pack("<dBH", 1.0, 1, 0xFFFF)),
    "carry, 65535 senders": (wire.decode_carry, struct.pack("<dBH", 1.0, 0x80, 0xFFFF)),
    "carry, allowed senders": (wire.decode_carry, struct.pack("<dBH", 1.0, 0x80, wire.MAX_LEFT)),
    "log, 2^32 steps": (decode_log, struct.pack("<II", 0, 0xFFFFFFFF)),
    "log, 2^32 pages": (decode_log, struct.pack("<I", 0xFFFFFFFF)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_declared_number_allocates_nothing(lie: str) -> None:
    decode, data = LIES[lie]
    tracemalloc.start()
    with pytest.raises(WireError):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 * 1024


def test_the_carry_of_the_rules_fits_the_wire() -> None:
    assert FAILED_ROUNDS == wire.MAX_CARRY_ROUNDS


@pytest.mark.parametrize("bits", [0x80000000, 0x00000001, 0x007FFFFF, 0x7F800000, 0x7FC00000, 0xBF800000])
def test_a_norm_is_zero_or_normal_and_positive(bits: int) -> None:
    good = wire.encode_work(WORK)
    with pytest.raises(WireError, match="a norm is negative, subnormal or not finite"):
        wire.decode_work(good[:-4] + bits.to_bytes(4, "little"))


@pytest.mark.parametrize("number", [-0.0, -1.0, math.inf, math.nan])
def test_a_gradient_norm_carries_no_sign(number: float) -> None:
    step = wire.encode_step(dataclasses.replace(STEPS[0], grad_norm=number))
    with pytest.raises(WireError, match="bad gradient norm"):
        decode_log(struct.pack("<II", 0, 1) + step)
