"""The public state of a round and the bit-exact outer step (protocol sections 1 and 6).

Everything here is numpy float32 on the CPU, multiply and add as separate operations: torch's fused
`add_(x, alpha=...)` changes a quarter of the coordinates' last bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.sections import AverageSection, OuterSection
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
    starts = range(0, len(state.params), chunk_coords)
    leaves = [_digest(vector[i : i + chunk_coords]) for vector in (state.params, state.momentum) for i in starts]
    return [*leaves, _last_leaf(state.applied, state.carry)]


def outer_step(
    state: RunState, averages: Iterable[Vector], carry: Carry, outer: OuterSection, into: Vector | None = None
) -> tuple[RunState, bytes]:
    """Nesterov SGD on the averaged pseudo-gradient: the next state, and its root.

    averages: the weighted mean of theta_r - theta_{r,H}, fp32 [d], in the chunks of the state root; each is done with
    before the next is asked for. The new numbers stand where the old ones stood, so `state` is nobody's any more, and
    lost where this fails half way. into: where the new parameters go, fp32 [d]; the old ones then stay as they were.
    """
    rate, decay = np.float32(outer.learning_rate), np.float32(outer.momentum)
    params, momentum = state.params if into is None else into, state.momentum
    param_leaves, momentum_leaves = list[bytes](), list[bytes]()
    memory, start = np.empty((0,), np.float32), 0
    for average in averages:
        chunk = slice(start, start := start + len(average))
        memory = memory if len(memory) >= len(average) else np.empty_like(average)
        buffer, work = momentum[chunk], memory[: len(average)]
        np.multiply(buffer, decay, out=buffer)
        np.add(buffer, average, out=buffer)
        np.copyto(buffer, 0, where=np.abs(buffer, out=work) < _SMALLEST)
        np.multiply(buffer, decay, out=work)
        np.add(work, average, out=work)
        np.multiply(work, rate, out=work)
        np.subtract(state.params[chunk], work, out=params[chunk])
        param_leaves.append(_digest(params[chunk]))
        momentum_leaves.append(_digest(buffer))
    if start != len(params):
        raise ValueError(f"an average of {start} numbers for {len(params)} parameters")
    new = RunState(params, momentum, state.applied + 1, carry)
    return new, merkle_root([*param_leaves, *momentum_leaves, _last_leaf(new.applied, carry)])


def _digest(numbers: Vector) -> bytes:
    return digest(np.ascontiguousarray(numbers, "<f4").view(np.uint8).data)


def _last_leaf(applied: int, carry: Carry) -> bytes:
    return digest(struct.pack("<Q", applied) + encode_carry(carry))
