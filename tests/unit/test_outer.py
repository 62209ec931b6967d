from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from frozen import known_vector, three_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import CARRY, RUN

from distributed_training.averaging.codecs.base import Vector
from distributed_training.protocol.types import Carry
from distributed_training.training.outer import RunState, initial_state, outer_step, state_root

OUTER = RUN.outer.model_copy(update={"learning_rate": 0.7, "momentum": 0.9})
tame = st.floats(-1e6, 1e6, width=32)


def literal(params: Vector, momentum: Vector, average: Vector) -> tuple[list[np.float32], list[np.float32]]:
    """Nesterov SGD coordinate by coordinate, every operation rounded to fp32."""
    rate, mu = np.float32(0.7), np.float32(0.9)
    new_params, new_momentum = [], []
    for p, m, a in zip(params, momentum, average, strict=True):
        buffer = np.float32(np.float32(m * mu) + a)
        buffer = np.float32(0) if abs(buffer) < 1e-30 else buffer
        direction = np.float32(np.float32(buffer * mu) + a)
        new_momentum.append(buffer)
        new_params.append(np.float32(p - np.float32(direction * rate)))
    return new_params, new_momentum


@settings(max_examples=60)
@given(hnp.arrays(np.float32, (3, 12), elements=tame))
def test_the_step_is_bit_exact(values: Vector) -> None:
    params, momentum, average = values
    new, root = outer_step(RunState(params.copy(), momentum.copy(), 4, CARRY), [average], Carry(9.0, ()), OUTER)
    expected_params, expected_momentum = literal(params, momentum, average)
    assert new.params.tobytes() == np.asarray(expected_params, np.float32).tobytes()
    assert new.momentum.tobytes() == np.asarray(expected_momentum, np.float32).tobytes()
    assert (new.params.dtype, new.momentum.dtype) == (np.float32, np.float32)
    assert (new.applied, new.carry) == (5, Carry(9.0, ())) and root == state_root(new, len(average))


def test_fading_momentum_becomes_zero_before_it_becomes_subnormal() -> None:
    nothing = np.zeros(3, np.float32)
    state = RunState(nothing, np.array([1, -1, 1e-29], np.float32), 0, CARRY)
    for _ in range(1000):
        state, _ = outer_step(state, [nothing], CARRY, OUTER)
        assert ((state.momentum == 0) | (np.abs(state.momentum) >= 1e-30)).all()
    assert state.momentum.tobytes() == nothing.tobytes()


def test_a_fused_step_would_be_another() -> None:
    params, momentum, average = (known_vector(1000, n) * np.float32(0.1) for n in (3, 5, 7))
    new, _ = outer_step(RunState(params.copy(), momentum.copy(), 0, CARRY), [average], CARRY, OUTER)
    fused = momentum.astype(np.float64) * np.float32(0.9) + average  # one rounding instead of two
    assert (fused.astype(np.float32) != new.momentum).any()


@pytest.mark.parametrize("kept", [False, True])
def test_the_new_numbers_stand_where_the_old_ones_stood_but_for_parameters_that_are_kept(kept: bool) -> None:
    old = RunState(known_vector(100, 3), known_vector(100, 5), 1, CARRY)
    average, params, momentum = known_vector(100, 7), old.params.copy(), old.momentum.copy()
    new, root = outer_step(old, cut(average, 64), Carry(1.0, ()), OUTER, np.empty_like(params) if kept else None)
    assert average.tobytes() == known_vector(100, 7).tobytes() and old.applied == 1
    assert np.shares_memory(new.params, old.params) != kept and new.momentum is old.momentum
    assert (old.params.tobytes() == params.tobytes()) == kept
    expected = literal(params, momentum, average)
    assert [new.params.tobytes(), new.momentum.tobytes()] == [np.asarray(e, np.float32).tobytes() for e in expected]
    assert root == state_root(new, 64)


def cut(vector: Vector, size: int) -> Iterator[Vector]:
    """Chunk by chunk, all in the same memory, as `Combined.averages` gives them."""
    memory = np.full(size, np.nan, np.float32)
    for start in range(0, len(vector), size):
        part = vector[start : start + size]
        memory[: len(part)] = part
        yield memory[: len(part)]
        memory.fill(np.nan)


@settings(max_examples=30)
@given(hnp.arrays(np.float32, (3, 50), elements=tame), st.integers(1, 60))
def test_chunk_by_chunk_is_the_same_as_at_once(values: Vector, size: int) -> None:
    params, momentum, average = values
    one, many = (RunState(params.copy(), momentum.copy(), 0, CARRY) for _ in range(2))
    whole, _ = outer_step(one, [average], CARRY, OUTER)
    parts, root = outer_step(many, cut(average, size), CARRY, OUTER)
    assert (whole.params.tobytes(), whole.momentum.tobytes()) == (parts.params.tobytes(), parts.momentum.tobytes())
    assert root == state_root(whole, size)


def test_an_average_of_another_length_is_refused() -> None:
    state = RunState(known_vector(10, 3), known_vector(10, 5), 1, CARRY)
    with pytest.raises(ValueError, match="an average of 6 numbers for 10 parameters"):
        outer_step(state, cut(known_vector(6, 1), 3), CARRY, OUTER)


def test_the_initial_state_is_a_copy_with_zero_momentum() -> None:
    params = known_vector(10, 3)
    state = initial_state(params, RUN.average)
    params[0] = 99
    assert state.params[0] != 99 and state.params.dtype == state.momentum.dtype == np.float32
    assert not state.momentum.any() and state.applied == 0
    assert state.carry == Carry(RUN.average.initial_tau, ())


def test_descent_goes_against_the_pseudo_gradient() -> None:
    state = RunState(np.ones(1, np.float32), np.zeros(1, np.float32), 0, CARRY)
    state, _ = outer_step(state, [np.ones(1, np.float32)], CARRY, OUTER)
    assert state.params[0] == pytest.approx(1 - 0.7 * 1.9) and state.momentum[0] == 1.0
    state, _ = outer_step(state, [np.zeros(1, np.float32)], CARRY, OUTER)
    assert state.params[0] == pytest.approx(1 - 0.7 * (1.9 + 0.81)) and state.momentum[0] == np.float32(0.9)


def test_every_part_of_the_state_is_under_the_root() -> None:
    state = three_steps()
    params, momentum = state.params.copy(), state.momentum.copy()
    params[-1] = np.nextafter(params[-1], np.float32(np.inf))
    momentum[0] = np.nextafter(momentum[0], np.float32(np.inf))
    tau = np.nextafter(state.carry.tau, 100)
    others = [
        state,
        replace(state, params=params),
        replace(state, momentum=momentum),
        replace(state, params=state.momentum, momentum=state.params),
        replace(state, applied=state.applied + 1),
        replace(state, carry=Carry(float(tau), state.carry.failed)),
        replace(state, carry=Carry(state.carry.tau, (*state.carry.failed[:-1], ()))),
        replace(state, carry=Carry(state.carry.tau, state.carry.failed[1:])),
    ]
    assert len({state_root(s, 256) for s in others}) == len(others)
    assert state_root(state, 256) != state_root(state, 512)
    copy = RunState(state.params[::-1].copy()[::-1], state.momentum.copy(), state.applied, state.carry)
    assert state_root(copy, 256) == state_root(state, 256)  # bytes count, not strides
