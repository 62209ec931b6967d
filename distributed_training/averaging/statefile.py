"""The state of a round as one safetensors file, byte for byte the same on every node that writes it.

8 bytes little-endian header length, a JSON header in exactly one spelling, `params`, `momentum` (both `<f4`). Any
safetensors reader opens it; ours takes only what `encode_state` writes.
"""

from __future__ import annotations

import json

import numpy as np

from distributed_training.errors import WireError
from distributed_training.training.outer import RunState, Vector
from distributed_training.types import Carry
from distributed_training.wire import decode_carry, encode_carry

# A JSON parser needs a bound before it starts. The carry as hex: 8 rounds, 4096 keys included, 4096 failed at most.
MAX_HEADER_BYTES = 8 * 2 * 4096 * 64 + 4096


def encode_state(round_index: int, state: RunState) -> bytes:
    """safetensors bytes of the state at the start of `round_index`."""
    vectors = [np.ascontiguousarray(v, "<f4").tobytes() for v in (state.params, state.momentum)]
    return b"".join((_header(round_index, state.applied, state.carry, len(state.params)), *vectors))


def decode_state(data: bytes) -> tuple[int, RunState]:
    """Raises WireError for anything `encode_state` did not write; the root is the caller's check."""
    size = int.from_bytes(data[:8], "little")
    if not 0 < size <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise WireError("state snapshot: the length of the header cannot be")
    try:
        header = json.loads(data[8 : 8 + size])
        meta, count = header["__metadata__"], header["params"]["shape"][0]
        round_index, applied = int(meta["round"]), int(meta["applied"])
        carry = decode_carry(bytes.fromhex(meta["carry"]))
        canonical = _header(round_index, applied, carry, count)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"state snapshot: {error}") from None
    if data[: 8 + size] != canonical or min(round_index, applied, count) < 0:
        raise WireError("state snapshot: another header than we would write")
    if len(data) != 8 + size + 8 * count:
        raise WireError(f"state snapshot: {len(data)} bytes, {8 + size + 8 * count} expected")
    params, momentum = (_vector(data, 8 + size + 4 * i * count, count) for i in range(2))
    return round_index, RunState(params, momentum, applied, carry)


def _vector(data: bytes, offset: int, count: int) -> Vector:
    vector = np.frombuffer(data, "<f4", count, offset).astype(np.float32)
    if not np.isfinite(vector).all():
        raise WireError("state snapshot: non-finite number")
    return vector


def _header(round_index: int, applied: int, carry: Carry, count: int) -> bytes:
    """Length and JSON text, padded with spaces to a multiple of 8 bytes as the format recommends."""
    meta = {"round": str(round_index), "applied": str(applied), "carry": encode_carry(carry).hex()}
    tensors = {
        name: {"dtype": "F32", "shape": [count], "data_offsets": [4 * i * count, 4 * (i + 1) * count]}
        for i, name in enumerate(("params", "momentum"))
    }
    text = json.dumps({"__metadata__": meta, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
