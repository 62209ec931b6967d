"""Records <-> canonical bytes. One encoding per record, little-endian, frozen by golden vectors.

Decoders take foreign bytes: every length is bounded before it is used, every number must be finite, and nothing
may be left over. They raise WireError and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distributed_training.errors import WireError
from distributed_training.protocol.types import (
    NO_ROOT,
    Accusation,
    Carry,
    Left,
    OutputRecord,
    Signed,
    StepRecord,
    WorkRecord,
)

SIGNATURE_BYTES = 64
MAX_CHUNKS = 1 << 20
MAX_SENDERS = 4096
MAX_CARRY_ROUNDS = 8
LEFT_BYTES = 65  # of one sender in a carry
MAX_LEFT = MAX_CARRY_ROUNDS * MAX_SENDERS  # if hotkeys changed in every round
MAX_REASON = 32

_WORK = struct.Struct("<4s32sIH32s32sIQ32s32s32sB32s32s32sII")
_WORK_TAG = b"DTW2"
_OUTPUT = struct.Struct("<4s32sIH32s32s32sHI")
_OUTPUT_TAG = b"DTO2"
_STEP = struct.Struct("<IfHBB")
_ACCUSATION = struct.Struct("<4s32sI32s32sIB")
_ACCUSATION_TAG = b"DTA1"
_REQUEST = struct.Struct("<32s64s")
_LEFT = struct.Struct("<32s32sB")
_HAS_LEFT = 0x80  # in the number of rounds: who left something out follows them
_COUNT = struct.Struct("<I")
_SMALLEST_NORMAL, _INFINITY = 0x00800000, 0x7F800000  # bit patterns of fp32


class _Reader:
    """Cuts foreign bytes into parts; refuses to read past the end or to leave a rest."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, num_bytes: int) -> bytes:
        part = self._data[self._at : self._at + num_bytes]
        if len(part) != num_bytes:
            raise WireError(f"{self._what}: {num_bytes} bytes expected, {len(part)} left")
        self._at += num_bytes
        return part

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.take(layout.size))

    def floats(self, count: int, dtype: str) -> tuple[float, ...]:
        width = np.dtype(dtype).itemsize
        values = np.frombuffer(self.take(count * width), dtype).astype(np.float64)
        if not np.isfinite(values).all():
            raise WireError(f"{self._what}: non-finite number")
        return tuple(values.tolist())

    def norms(self, count: int) -> tuple[float, ...]:
        """fp32 norms: +0 or a normal positive number. Subnormals are zero on some machines: nodes would disagree."""
        bits = np.frombuffer(self.take(count * 4), "<u4")
        if not ((bits == 0) | ((bits >= _SMALLEST_NORMAL) & (bits < _INFINITY))).all():
            raise WireError(f"{self._what}: a norm is negative, subnormal or not finite")
        return tuple(bits.view("<f4").tolist())

    def end(self) -> None:
        if self._at != len(self._data):
            raise WireError(f"{self._what}: {len(self._data) - self._at} bytes too many")


def record_hash(body: bytes) -> bytes:
    """sha256 of a record's unsigned body: what goes on chain."""
    return hashlib.sha256(body).digest()


def signing_message(body: bytes) -> bytes:
    """The bytes a hotkey signs for a record."""
    return b"distributed-training record\x00" + record_hash(body)


def binding_message(netuid: int, public_key: bytes, registered_block: int) -> bytes:
    """The bytes a peer key signs to accept being named by a hotkey's registration (protocol section 2)."""
    return b"distributed-training binding\x00" + struct.pack("<H32sI", netuid, public_key, registered_block)


def encode_signed(signed: Signed) -> bytes:
    return signed.signature + signed.body


def decode_signed(data: bytes) -> Signed:
    if len(data) <= SIGNATURE_BYTES:
        raise WireError("signed record: too short")
    return Signed(body=data[SIGNATURE_BYTES:], signature=data[:SIGNATURE_BYTES])


def encode_request(public_key: bytes, binding: bytes, payload: bytes) -> bytes:
    """First frame of every stream: who asks (hotkey's public key, the peer key's binding signature) and what."""
    return _REQUEST.pack(public_key, binding) + payload


def decode_request(data: bytes) -> tuple[bytes, bytes, bytes]:
    """(public_key, binding, payload)."""
    reader = _Reader(data, "request")
    public_key, binding = reader.unpack(_REQUEST)
    return public_key, binding, data[_REQUEST.size :]


# --- work record and step log (protocol section 5) -----------------------------------------------


def encode_work(record: WorkRecord) -> bytes:
    r = record
    head = _WORK.pack(
        _WORK_TAG, r.manifest, r.round, r.uid, r.public_key, r.state_root, r.steps, r.tokens,
        r.pages_root, r.log_root, r.wire_root, r.codec, r.feedback_start, r.feedback_end, r.began_at, r.shift_step,
        len(r.chunk_norms),
    )  # fmt: skip
    return head + np.asarray(r.chunk_norms, "<f4").tobytes()


def decode_work(data: bytes) -> WorkRecord:
    reader = _Reader(data, "work record")
    (
        tag, manifest, round_index, uid, public_key, state_root, steps, tokens, pages, log, wire, codec,
        feedback_start, feedback_end, began_at, shift_step, chunks,
    ) = reader.unpack(_WORK)  # fmt: skip
    if tag != _WORK_TAG or chunks > MAX_CHUNKS:
        raise WireError("work record: wrong tag or too many chunks")
    norms = reader.norms(chunks)
    reader.end()
    return WorkRecord(
        manifest=manifest, round=round_index, uid=uid, public_key=public_key, state_root=state_root, steps=steps,
        tokens=tokens, pages_root=pages, log_root=log, wire_root=wire, codec=codec, feedback_start=feedback_start,
        feedback_end=feedback_end, began_at=began_at, shift_step=shift_step, chunk_norms=norms,
    )  # fmt: skip


def encode_step(step: StepRecord) -> bytes:
    """fp16 losses and sketches, fp32 gradient norm."""
    sketch = np.asarray(step.sketch, "<f2")
    head = _STEP.pack(step.step, step.grad_norm, len(step.losses), sketch.shape[0], sketch.shape[1])
    return head + np.asarray(step.losses, "<f2").tobytes() + sketch.tobytes()


def encode_log(pages: Sequence[bytes], steps: Sequence[StepRecord]) -> bytes:
    """What a miner pushes: the digests of the pages it used, in order, then its steps."""
    listed = _COUNT.pack(len(pages)) + b"".join(pages)
    return listed + _COUNT.pack(len(steps)) + b"".join(encode_step(s) for s in steps)


def decode_log(
    data: bytes, *, max_pages: int, max_steps: int, batch_size: int, groups: int, sketch_size: int
) -> tuple[tuple[bytes, ...], tuple[StepRecord, ...]]:
    """(page digests, steps). Every step must have exactly the shape the manifest implies, numbered from 0 without a
    gap."""
    reader = _Reader(data, "step log")
    (listed,) = reader.unpack(_COUNT)
    if listed > max_pages:
        raise WireError(f"step log: {listed} pages, at most {max_pages} expected")
    pages = tuple(reader.take(32) for _ in range(listed))
    (count,) = reader.unpack(_COUNT)
    if count > max_steps:
        raise WireError(f"step log: {count} steps, at most {max_steps} expected")
    steps: list[StepRecord] = []
    for expected in range(count):
        number, grad_norm, losses, rows, columns = reader.unpack(_STEP)
        if (number, losses, rows, columns) != (expected, batch_size, groups, sketch_size):
            raise WireError(f"step log: step {expected} has the wrong number or shape")
        if not math.isfinite(grad_norm) or math.copysign(1, grad_norm) < 0:
            raise WireError(f"step log: step {expected} has a bad gradient norm")
        loss = reader.floats(batch_size, "<f2")
        flat = reader.floats(groups * sketch_size, "<f2")
        sketch = tuple(flat[g * sketch_size : (g + 1) * sketch_size] for g in range(groups))
        steps.append(StepRecord(number, loss, grad_norm, sketch))
    reader.end()
    return pages, tuple(steps)


# --- accusation (protocol section 7) --------------------------------------------------------------


def encode_accusation(a: Accusation) -> bytes:
    reason = a.reason.encode("ascii")[:MAX_REASON]
    head = _ACCUSATION.pack(_ACCUSATION_TAG, a.manifest, a.round, a.accuser, a.miner, a.steps, len(reason))
    return head + reason


def decode_accusation(data: bytes) -> Accusation:
    reader = _Reader(data, "accusation")
    tag, manifest, round_index, accuser, miner, steps, size = reader.unpack(_ACCUSATION)
    if tag != _ACCUSATION_TAG or size > MAX_REASON or steps == 0:
        raise WireError("accusation: wrong tag, reason too long or no step")
    reason = reader.take(size)
    reader.end()
    if not all(32 <= letter < 127 for letter in reason):
        raise WireError("accusation: the reason is not printable")
    return Accusation(manifest, round_index, accuser, miner, steps, reason.decode("ascii"))


# --- output record (protocol section 6) ----------------------------------------------------------


def encode_output(record: OutputRecord) -> bytes:
    r = record
    head = _OUTPUT.pack(
        _OUTPUT_TAG, r.manifest, r.round, r.slice, r.public_key, r.output_root, r.backup,
        len(r.senders), len(r.included),
    )  # fmt: skip
    bits = np.packbits(np.asarray(r.included, bool).reshape(len(r.included), len(r.senders)), axis=1)
    return head + b"".join(r.senders) + bits.tobytes()


def decode_output(data: bytes) -> OutputRecord:
    reader = _Reader(data, "output record")
    tag, manifest, round_index, slice_index, public_key, root, backup, num_senders, chunks = reader.unpack(_OUTPUT)
    if tag != _OUTPUT_TAG or not 1 <= num_senders <= MAX_SENDERS or not 1 <= chunks <= MAX_CHUNKS:
        raise WireError("output record: wrong tag, or a number of senders or chunks that cannot be")
    listed = reader.take(32 * num_senders)
    senders = tuple(listed[i : i + 32] for i in range(0, len(listed), 32))
    width = (num_senders + 7) // 8
    packed = np.frombuffer(reader.take(chunks * width), np.uint8).reshape(chunks, width)
    reader.end()
    bits = np.unpackbits(packed, axis=1).astype(bool)
    if bits[:, num_senders:].any():
        raise WireError("output record: padding bits are set")
    return OutputRecord(
        manifest=manifest, round=round_index, slice=slice_index, public_key=public_key, output_root=root, backup=backup,
        senders=senders, included=tuple(map(tuple, bits[:, :num_senders].tolist())),
    )  # fmt: skip


def output_senders(body: bytes) -> tuple[bytes, ...]:
    """Only the senders of an output record that was decoded before."""
    count = _OUTPUT.unpack_from(body)[-2]
    return tuple(body[_OUTPUT.size + 32 * i : _OUTPUT.size + 32 * (i + 1)] for i in range(count))


# --- carry ------------------------------------------------------------------------------------------


def encode_carry(carry: Carry) -> bytes:
    """Canonical bytes of the public carry; part of the state root. What nobody has left out takes none."""
    parts = [struct.pack("<dB", carry.tau, len(carry.failed) | (_HAS_LEFT if carry.left else 0))]
    for keys in carry.failed:
        parts += [struct.pack("<H", len(keys)), *keys]
    if carry.left:
        parts += [struct.pack("<H", len(carry.left)), *(_LEFT.pack(x.public_key, x.root, x.age) for x in carry.left)]
    return b"".join(parts)


def decode_carry(data: bytes) -> Carry:
    reader = _Reader(data, "carry")
    tau, count = reader.unpack(struct.Struct("<dB"))
    if not sys.float_info.min <= tau <= sys.float_info.max:
        raise WireError("carry: bad clip threshold")
    has_left, count = count & _HAS_LEFT, count & ~_HAS_LEFT
    if count > MAX_CARRY_ROUNDS:
        raise WireError(f"carry: {count} rounds, at most {MAX_CARRY_ROUNDS} expected")
    failed: list[tuple[bytes, ...]] = []
    for _ in range(count):
        (keys,) = reader.unpack(struct.Struct("<H"))
        failed.append(tuple(reader.take(32) for _ in range(keys)))
    left = _left(reader) if has_left else ()
    reader.end()
    return Carry(tau, tuple(failed), left)


def _left(reader: _Reader) -> tuple[Left, ...]:
    (count,) = reader.unpack(struct.Struct("<H"))
    if not 0 < count <= MAX_LEFT:
        raise WireError(f"carry: {count} senders that left something out, 1 to {MAX_LEFT} expected")
    found = tuple(Left(*reader.unpack(_LEFT)) for _ in range(count))
    if any(a.public_key >= b.public_key for a, b in pairwise(found)):
        raise WireError("carry: senders out of order")
    if any(x.root == NO_ROOT or x.age >= MAX_CARRY_ROUNDS for x in found):
        raise WireError("carry: a sender that left nothing out, or was included too long ago")
    return found
