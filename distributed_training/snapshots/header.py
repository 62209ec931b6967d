"""A state in pieces that strangers can hand over: its shape, its header, and the one method that asks for both.

The header holds what the state root is made of: the digests of all chunks of parameters, then momentum, the applied
count and the carry. Whoever knows the root needs no trust in who gives the header, and then none in who gives a chunk.

    request (round)                    -> one frame: status, and the header if there is one
    then any number of (first, last)   -> one frame each: the bytes of chunks [first, last), in the order asked
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from distributed_training.errors import WireError
from distributed_training.protocol.merkle import DIGEST_BYTES, digest, merkle_root
from distributed_training.protocol.wire import LEFT_BYTES, MAX_CARRY_ROUNDS, decode_carry, encode_carry
from distributed_training.training.outer import RunState, state_leaves

METHOD = "snapshot"
ROUND = struct.Struct("<I")
RANGE = struct.Struct("<II")
ABSENT, BUSY, HELD = b"\x00", b"\x01", b"\x02"
PIECE_BYTES = 1 << 20  # asked for at a time, or one chunk if that is longer
_HEAD = struct.Struct("<4sIQII")  # tag, round, applied, bytes of carry, number of digests
_TAG = b"DTS1"
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """How a state is cut: chunks of `chunk_coords` float32, first those of the parameters, then of the momentum."""

    num_coords: int
    chunk_coords: int

    @property
    def num_chunks(self) -> int:
        return 2 * -(-self.num_coords // self.chunk_coords)

    @property
    def num_bytes(self) -> int:
        return 2 * _FLOAT * self.num_coords

    def offset(self, chunk: int) -> int:
        """Where chunk 0 <= `chunk` <= num_chunks begins in parameters | momentum, in bytes."""
        half = self.num_chunks // 2
        vector, within = (1, chunk - half) if chunk >= half else (0, chunk)
        return _FLOAT * (vector * self.num_coords + min(within * self.chunk_coords, self.num_coords))

    def size(self, first: int, last: int) -> int:
        """Bytes of chunks [first, last)."""
        return self.offset(last) - self.offset(first)

    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(first, last) of runs of chunks of about PIECE_BYTES: what is asked for at a time."""
        step, end = max(1, PIECE_BYTES // (_FLOAT * self.chunk_coords)), self.num_chunks
        return tuple((first, min(first + step, end)) for first in range(0, end, step))

    def check_range(self, first: int, last: int) -> None:
        """Raises WireError for chunks that no honest asker asks for in one request."""
        limit = max(1, PIECE_BYTES // (_FLOAT * self.chunk_coords))
        if not 0 <= first < last <= self.num_chunks or last - first > limit:
            raise WireError(f"snapshot: chunks {first}..{last} were asked for, of {self.num_chunks}")

    def max_header_bytes(self, max_uids: int) -> int:
        """No header of this shape is longer: 8 rounds of carry name every uid twice at most, as a reducer that failed
        and as a sender that was included."""
        carry = 9 + 2 + MAX_CARRY_ROUNDS * (2 + (DIGEST_BYTES + LEFT_BYTES) * max_uids)
        return len(HELD) + _HEAD.size + carry + DIGEST_BYTES * self.num_chunks


@dataclass(frozen=True, slots=True)
class Header:
    """Everything of a state but its numbers."""

    round: int
    applied: int
    carry: bytes  # canonical bytes
    digests: bytes  # of all chunks, 32 bytes each, concatenated

    @property
    def root(self) -> bytes:
        """The state root (`training.outer.state_root`)."""
        leaves = [self.digests[i : i + DIGEST_BYTES] for i in range(0, len(self.digests), DIGEST_BYTES)]
        return merkle_root([*leaves, digest(struct.pack("<Q", self.applied) + self.carry)])

    def check(self, shape: Shape, first: int, last: int, data: bytes | memoryview) -> None:
        """Raises WireError unless `data` is chunks [first, last), byte for byte."""
        if len(data) != shape.size(first, last):
            raise WireError(f"snapshot: {len(data)} bytes for chunks {first}..{last}")
        view, start = memoryview(data), shape.offset(first)
        for chunk in range(first, last):
            part = view[shape.offset(chunk) - start : shape.offset(chunk + 1) - start]
            if digest(bytes(part)) != self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES]:
                raise WireError(f"snapshot: chunk {chunk} has another digest than the header says")


def header_of(round_index: int, state: RunState, chunk_coords: int) -> Header:
    leaves = state_leaves(state, chunk_coords)
    return Header(round_index, state.applied, encode_carry(state.carry), b"".join(leaves[:-1]))


def encode_header(header: Header) -> bytes:
    count = len(header.digests) // DIGEST_BYTES
    return _HEAD.pack(_TAG, header.round, header.applied, len(header.carry), count) + header.carry + header.digests


def decode_header(data: bytes, round_index: int, shape: Shape) -> Header:
    """Strict: of this round, with exactly the digests the shape has and a carry that decodes. Raises WireError."""
    if len(data) < _HEAD.size:
        raise WireError("snapshot header: too short")
    tag, of_round, applied, carry_bytes, count = _HEAD.unpack_from(data)
    if (tag, of_round, count) != (_TAG, round_index, shape.num_chunks):
        raise WireError("snapshot header: wrong tag, another round, or another number of chunks")
    if len(data) != _HEAD.size + carry_bytes + DIGEST_BYTES * count:
        raise WireError("snapshot header: wrong length")
    carry = data[_HEAD.size : _HEAD.size + carry_bytes]
    decode_carry(carry)
    return Header(round_index, applied, carry, data[_HEAD.size + carry_bytes :])
