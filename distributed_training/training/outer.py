"""The public state of a round and the bit-exact outer step (protocol sections 1 and 6).

Everything here is numpy float32 on the CPU, multiply and add as separate operations: torch's fused
`add_(x, alpha=...)` changes a quarter of the coordinates' last bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol.manifest import AverageSection, OuterSection
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Carry
from distributed_training.protocol.wire import encode_carry

Vector = NDArray[np.float32]
# Momentum that fades out becomes zero before it becomes subnormal: processes may flush those, and would disagree.
_SMALLEST = np.float32(1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class RunState:
    """What every honest node holds, byte for byte, at the start of a round."""

    params: Vector  # [d]
    momentum: Vector  # [d]
    applied: int  # rounds applied so far
    carry: Carry


def initial_state(params: Vector, average: AverageSection) -> RunState:
    """Round 0: zero momentum, empty history, the manifest's clip threshold."""
    return RunState(params.astype(np.float32), np.zeros_like(params, np.float32), 0, Carry(average.initial_tau, ()))


def state_root(state: RunState, chunk_coords: int) -> bytes:
    """Merkle root over the chunk digests of parameters, then momentum, then of (applied count, carry)."""
    return merkle_root(state_leaves(state, chunk_coords))


def state_leaves(state: RunState, chunk_coords: int) -> list[bytes]:
    """The digests under the state root, in order."""
    leaves = [digest(part) for vector in (state.params, state.momentum) for part in _chunks(vector, chunk_coords)]
    leaves.append(digest(struct.pack("<Q", state.applied) + encode_carry(state.carry)))
    return leaves


def outer_step(state: RunState, average: Vector, carry: Carry, outer: OuterSection) -> RunState:
    """Nesterov SGD on the averaged pseudo-gradient; returns a new state, the old one is untouched.

    average: fp32 [d], the weighted mean of theta_r - theta_{r,H}.
    """
    rate, momentum = np.float32(outer.learning_rate), np.float32(outer.momentum)
    buffer = np.add(state.momentum * momentum, average, dtype=np.float32)
    buffer[np.abs(buffer) < _SMALLEST] = 0
    direction = buffer * momentum + average
    params = np.subtract(state.params, direction * rate, dtype=np.float32)
    return RunState(params, buffer, state.applied + 1, carry)


def _chunks(vector: Vector, chunk_coords: int) -> list[bytes]:
    data = np.ascontiguousarray(vector, "<f4")
    return [data[i : i + chunk_coords].tobytes() for i in range(0, len(data), chunk_coords)]
