"""The state of a round as one safetensors file, byte for byte the same on every node that writes it.

8 bytes little-endian header length, a JSON header in exactly one spelling, `params`, `momentum` (both `<f4`). Any
safetensors reader opens it; ours takes only what `encode_state` writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from distributed_training.errors import WireError
from distributed_training.protocol.types import Carry
from distributed_training.protocol.wire import decode_carry, encode_carry
from distributed_training.training.outer import RunState, Vector

# A JSON parser needs a bound before it starts. The carry as hex: 8 rounds, in each 4096 that failed and 4096 included.
MAX_HEADER_BYTES = 8 * 2 * 4096 * (32 + 65) + 4096


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands before the numbers of a state file of `num_bytes` + 8 * `num_coords` bytes."""

    round: int
    applied: int
    carry: Carry
    num_coords: int
    num_bytes: int


def encode_state(round_index: int, state: RunState) -> bytes:
    """safetensors bytes of the state at the start of `round_index`."""
    vectors = [np.ascontiguousarray(v, "<f4").tobytes() for v in (state.params, state.momentum)]
    return b"".join((encode_prefix(round_index, state.applied, state.carry, len(state.params)), *vectors))


def decode_state(data: bytes) -> tuple[int, RunState]:
    """Raises WireError for anything `encode_state` did not write; the root is the caller's check."""
    found = decode_prefix(data[: prefix_bytes(data[:8])], len(data))
    vectors = [
        np.frombuffer(data, "<f4", found.num_coords, found.num_bytes + 4 * i * found.num_coords).astype(np.float32)
        for i in range(2)
    ]
    return found.round, state_of(found, vectors[0], vectors[1])


def state_of(prefix: Prefix, params: Vector, momentum: Vector) -> RunState:
    """Raises WireError for a number that is not finite."""
    if not (np.isfinite(params).all() and np.isfinite(momentum).all()):
        raise WireError("state snapshot: non-finite number")
    return RunState(params, momentum, prefix.applied, prefix.carry)


def prefix_bytes(start: bytes) -> int:
    """Length of the prefix of a file that starts with these 8 bytes. Raises WireError."""
    size = int.from_bytes(start, "little")
    if len(start) != 8 or not 0 < size <= MAX_HEADER_BYTES:
        raise WireError("state snapshot: the length of the header cannot be")
    return 8 + size


def decode_prefix(data: bytes, file_bytes: int) -> Prefix:
    """The prefix of a file of `file_bytes`. Raises WireError for anything `encode_prefix` did not write."""
    try:
        header = json.loads(data[8:])
        meta, count = header["__metadata__"], header["params"]["shape"][0]
        if type(count) is not int:
            raise ValueError("the number of coordinates is no integer")
        round_index, applied = int(meta["round"]), int(meta["applied"])
        carry = decode_carry(bytes.fromhex(meta["carry"]))
        canonical = encode_prefix(round_index, applied, carry, count)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"state snapshot: {error}") from None
    if data != canonical or not (0 <= round_index < 1 << 32 and 0 <= applied < 1 << 64 and count >= 0):
        raise WireError("state snapshot: another header than we would write")
    if file_bytes != len(data) + 8 * count:
        raise WireError(f"state snapshot: {file_bytes} bytes, {len(data) + 8 * count} expected")
    return Prefix(round_index, applied, carry, count, len(data))


def encode_prefix(round_index: int, applied: int, carry: Carry, count: int) -> bytes:
    """Length and JSON text, padded with spaces to a multiple of 8 bytes as the format recommends."""
    meta = {"round": str(round_index), "applied": str(applied), "carry": encode_carry(carry).hex()}
    tensors = {
        name: {"dtype": "F32", "shape": [count], "data_offsets": [4 * i * count, 4 * (i + 1) * count]}
        for i, name in enumerate(("params", "momentum"))
    }
    text = json.dumps({"__metadata__": meta, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
