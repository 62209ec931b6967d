"""Fidelity on real training, honest and not: from random weights, where all gradients look alike, and later."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_training import AUDIT, GPT2, batches, loop, train

from distributed_training.protocol.observed import Verdict
from distributed_training.protocol.rules.fidelity import gradient_error, judge
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord
from distributed_training.training.flat import to_flat
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import KINDS

RULES = AuditSection.model_validate(AUDIT)
Log = tuple[StepRecord, ...]


class State(NamedTuple):
    """What a round starts from, and what trains it."""

    start: np.ndarray
    applied: int
    optimizer: str


@pytest.fixture(scope="module", params=[0, 30], ids=["random weights", "after 30 steps"])
def steps_before(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module", params=KINDS)
def state(request: pytest.FixtureRequest, steps_before: int) -> State:
    start = to_flat(build_model(GPT2, 7))
    before = loop(GPT2, optimizer=request.param)
    end = train(before, start, batches(50), steps_before, sketch_seed=None).end
    return State(end, steps_before // 5, request.param)


def run(state: State, data: object, *, more: dict[str, Any] | None = None, **of_loop: Any) -> Log:
    made = loop(GPT2, optimizer=state.optimizer, **of_loop)
    return train(made, state.start, data, 6, applied_rounds=state.applied, **(more or {})).steps  # pyright: ignore[reportArgumentType]


def claim_whole_batch(records: Log) -> Log:
    """Fill the losses of sequences that were not run with the mean of those that were."""
    return tuple(
        dataclasses.replace(r, losses=(*r.losses, *[float(np.mean(r.losses))] * (8 - len(r.losses)))) for r in records
    )


def part(size: int) -> object:
    return (batch[:size] for batch in batches(1))


def test_honest_logs_pass_with_room(state: State) -> None:
    truth = run(state, batches(1))
    two_threads = loop(GPT2, optimizer=state.optimizer)
    torch.set_num_threads(2)
    others = train(two_threads, state.start, batches(1), 6, applied_rounds=state.applied).steps
    torch.set_num_threads(1)
    for honest in (run(state, batches(1), micro_batch=1), run(state, batches(1), micro_batch=3), others):
        result = judge(honest, truth, depth=6, audit=RULES)
        assert result.verdict is Verdict.PASS
        assert result.error is not None
        assert result.error < RULES.error_ok / 20


def one_round_on(state: State) -> np.ndarray:
    made = loop(GPT2, optimizer=state.optimizer)
    return train(made, state.start, batches(60), 5, applied_rounds=state.applied).end


CHEATS: dict[str, Callable[[State, Log], Log]] = {
    "other data": lambda state, truth: run(state, batches(2)),
    "half batch": lambda state, truth: claim_whole_batch(run(state, part(4))),
    "7/8 batch": lambda state, truth: claim_whole_batch(run(state, part(7))),
    "half sequences": lambda state, truth: run(state, (b[:, list(range(16)) * 2] for b in batches(1))),
    "another round's state": lambda state, truth: run(state._replace(start=one_round_on(state)), batches(1)),
    "another round's log": lambda state, truth: run(state, batches(1), more={"sketch_seed": b"former round"}),
    "noise": lambda state, truth: tuple(
        dataclasses.replace(
            r,
            sketch=tuple(tuple(np.random.default_rng(i).permuted(row).tolist()) for i, row in enumerate(r.sketch)),
        )
        for r in truth
    ),
    "invented losses": lambda state, truth: tuple(
        dataclasses.replace(r, losses=(float(np.mean(r.losses)),) * 8) for r in truth
    ),
    "frozen block": lambda state, truth: tuple(
        dataclasses.replace(r, sketch=(r.sketch[0], (0.0,) * 32, *r.sketch[2:])) for r in truth
    ),
    "steps in another order": lambda state, truth: run(state, itertools.islice(batches(1), 1, None)),
}


# The gradients are honest here, and with random weights all sequences have about the same loss: this may end soft.
NO_GAIN = {"invented losses"}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(state: State, name: str) -> None:
    truth = run(state, batches(1))
    result = judge(CHEATS[name](state, truth), truth, depth=6, audit=RULES)
    assert result.verdict is not Verdict.PASS
    if name not in NO_GAIN:
        assert result.verdict is Verdict.FAIL


def test_coasting_fails_at_the_first_invented_step(state: State) -> None:
    truth = run(state, batches(1))
    coast = truth[:3] + tuple(dataclasses.replace(truth[2], step=t) for t in (3, 4, 5))
    assert judge(coast, truth, depth=3, audit=RULES).verdict is Verdict.PASS
    result = judge(coast, truth, depth=6, audit=RULES)
    assert (result.verdict, result.failed_step) == (Verdict.FAIL, 3)


def test_the_gradient_error_of_half_a_batch_is_far_above_an_honest_one(state: State) -> None:
    truth, other, half = run(state, batches(1)), run(state, batches(1), micro_batch=2), run(state, part(4))
    assert gradient_error(half[0], truth[0]) > 100 * gradient_error(other[0], truth[0])
