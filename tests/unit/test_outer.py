from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from frozen import known_vector, three_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from samples import CARRY, RUN, carry_round

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
    new = outer_step(RunState(params, momentum, 4, CARRY), average, Carry(9.0, ()), OUTER)
    expected_params, expected_momentum = literal(params, momentum, average)
    assert new.params.tobytes() == np.asarray(expected_params, np.float32).tobytes()
    assert new.momentum.tobytes() == np.asarray(expected_momentum, np.float32).tobytes()
    assert (new.params.dtype, new.momentum.dtype) == (np.float32, np.float32)
    assert (new.applied, new.carry) == (5, Carry(9.0, ()))


def test_fading_momentum_becomes_zero_before_it_becomes_subnormal() -> None:
    nothing = np.zeros(3, np.float32)
    state = RunState(nothing, np.array([1, -1, 1e-29], np.float32), 0, CARRY)
    for _ in range(1000):
        state = outer_step(state, nothing, CARRY, OUTER)
        assert ((state.momentum == 0) | (np.abs(state.momentum) >= 1e-30)).all()
    assert state.momentum.tobytes() == nothing.tobytes()


def test_a_fused_step_would_be_another() -> None:
    params, momentum, average = (known_vector(1000, n) * np.float32(0.1) for n in (3, 5, 7))
    new = outer_step(RunState(params, momentum, 0, CARRY), average, CARRY, OUTER)
    fused = momentum.astype(np.float64) * np.float32(0.9) + average  # one rounding instead of two
    assert (fused.astype(np.float32) != new.momentum).any()


def test_the_old_state_is_untouched() -> None:
    old = RunState(known_vector(100, 3), known_vector(100, 5), 1, CARRY)
    average = known_vector(100, 7)
    before = state_root(old, 64), average.tobytes()
    new = outer_step(old, average, Carry(1.0, ()), OUTER)
    assert (state_root(old, 64), average.tobytes()) == before
    assert not np.shares_memory(new.params, old.params) and not np.shares_memory(new.momentum, old.momentum)
    assert old.applied == 1


def test_the_initial_state_is_a_copy_with_zero_momentum() -> None:
    params = known_vector(10, 3)
    state = initial_state(params, RUN.average)
    params[0] = 99
    assert state.params[0] != 99 and state.params.dtype == state.momentum.dtype == np.float32
    assert not state.momentum.any() and state.applied == 0
    assert state.carry == Carry(RUN.average.initial_tau, ())


def test_descent_goes_against_the_pseudo_gradient() -> None:
    state = RunState(np.ones(1, np.float32), np.zeros(1, np.float32), 0, CARRY)
    state = outer_step(state, np.ones(1, np.float32), CARRY, OUTER)
    assert state.params[0] == pytest.approx(1 - 0.7 * 1.9) and state.momentum[0] == 1.0
    state = outer_step(state, np.zeros(1, np.float32), CARRY, OUTER)
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
        replace(state, carry=Carry(float(tau), state.carry.rounds)),
        replace(state, carry=Carry(state.carry.tau, (*state.carry.rounds[:-1], carry_round()))),
        replace(state, carry=Carry(state.carry.tau, state.carry.rounds[1:])),
    ]
    assert len({state_root(s, 256) for s in others}) == len(others)
    assert state_root(state, 256) != state_root(state, 512)
    copy = RunState(state.params[::-1].copy()[::-1], state.momentum.copy(), state.applied, state.carry)
    assert state_root(copy, 256) == state_root(state, 256)  # bytes count, not strides
