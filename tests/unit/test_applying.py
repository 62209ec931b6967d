"""How a follower applies a round: where its state lies, with the numbers of the whole-vector definition."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from frozen import known_vector
from samples import CARRY, D, group, reduced, whole

from distributed_training.averaging.combine import combine
from distributed_training.errors import StateDiverged
from distributed_training.protocol.rules.membership import Counted
from distributed_training.roles.follower import Follower
from distributed_training.training.outer import RunState, outer_step, state_root

G = group()
COUNTED = Counted((0, 1, 2, 3), "applied", {})


def follower(size: int = D) -> Follower:
    parts: Any = SimpleNamespace(manifest=G.run, journal=SimpleNamespace(is_trusted=lambda *asked: False))
    state = RunState(known_vector(size, 3), known_vector(size, 5) * np.float32(1e-3), 2, CARRY)
    return Follower(parts, 3, state, trusted=True)


def apply(f: Follower, *, keep_params: bool) -> None:
    outcome = asyncio.run(f._apply(G.plan, COUNTED, reduced(G), keep_params))
    assert outcome.applied and outcome.counted == COUNTED.slices


@pytest.mark.parametrize("keep_params", [False, True])
def test_the_next_state_is_that_of_the_whole_vector_and_the_former_parameters_stay_where_asked(
    keep_params: bool,
) -> None:
    f, expected = follower(), follower().state
    former, momentum, before = f.state.params, f.state.momentum, f.state.params.copy()
    made = combine(G.plan, COUNTED, reduced(G), G.run)
    expected, _ = outer_step(expected, [whole(made, G.plan)], made.carry, G.run.outer)
    apply(f, keep_params=keep_params)
    assert (f.state.params.tobytes(), f.state.momentum.tobytes()) == (
        expected.params.tobytes(), expected.momentum.tobytes(),
    )  # fmt: skip
    assert (f.state.applied, f.state.carry) == (3, made.carry)
    assert f.root == state_root(expected, G.run.average.chunk_coords)
    assert f.state.momentum is momentum and (former.tobytes() == before.tobytes()) == keep_params


def test_parameters_that_were_given_back_are_written_over() -> None:
    f = follower()
    kept = [f.state.params]
    for _ in range(3):
        apply(f, keep_params=True)
        f.give_back(kept[-1])
        kept.append(f.state.params)
    assert kept[2] is kept[0] and kept[3] is kept[1] and kept[0] is not kept[1]


def test_a_state_that_breaks_half_way_is_given_up() -> None:
    f = follower(D - 64)  # one chunk less than the plan's vector
    with pytest.raises(StateDiverged, match="our state is lost half way through the outer step"):
        apply(f, keep_params=False)
    assert not f.trusted, "or its miner trains from it, ahead of the round"
    with pytest.raises(StateDiverged, match="lost half way"):  # also where no other one was found to join from
        asyncio.run(f.prepare())
    asyncio.run(f.save())  # there is no store here that would take it
