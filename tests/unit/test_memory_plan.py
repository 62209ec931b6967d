"""What a node takes of memory, on paper. `scripts/bench.py memory` measures the host's phases."""

from __future__ import annotations

import pytest
import tiny_training

from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.memory import GIB, SCRATCH_BYTES, memory_lines, memory_plan
from distributed_training.averaging.plan import layout_of
from distributed_training.protocol.types import Role
from distributed_training.recipes.build import draft_manifest
from distributed_training.recipes.reading import read_preset
from distributed_training.training.bounds import MOST_PARAMETERS
from distributed_training.training.flat import named_shapes
from distributed_training.training.model import build_model, parameter_shapes

RUN = tiny_training.manifest(tiny_training.GPT2)
D = 8_000_000
VECTOR, WIRE = 4 * D, wire_bytes(INT8, layout_of(RUN, D))


def test_no_phase_of_a_miner_takes_more_than_three_vectors_and_what_is_encoded() -> None:
    plan = memory_plan(RUN, [("all", (D,))], Role.MINER, senders=4)
    assert max(plan.host, key=plan.host.__getitem__) == "encode"
    assert plan.host["encode"] == 3 * VECTOR + WIRE + SCRATCH_BYTES
    assert all(size <= 2 * VECTOR + 4 * WIRE + SCRATCH_BYTES for name, size in plan.host.items() if name != "encode")
    crowded = memory_plan(RUN, [("all", (D,))], Role.MINER, senders=4 * RUN.average.max_reducers)
    assert crowded.host["reduce"] > plan.host["reduce"] + 2 * WIRE, "more senders than reducers: a slice is longer"


def test_a_validator_keeps_the_parameters_that_it_audits_from() -> None:
    owner, validator = (memory_plan(RUN, [("all", (D,))], role) for role in (Role.OWNER, Role.VALIDATOR))
    assert validator.host["apply"] == owner.host["apply"] + VECTOR and "compare" not in owner.host


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", (2, 2)), ("muon", (1, 2))])
def test_moments_are_those_of_the_optimizer(optimizer: str, moments: tuple[int, int]) -> None:
    model = build_model(tiny_training.GPT2, 0)
    run = RUN.model_copy(update={"inner": RUN.inner.model_copy(update={"optimizer": optimizer})})
    plan = memory_plan(run, named_shapes(model), Role.MINER, card_bytes=None)
    matrices = sum(p.numel() for name, p in model.named_parameters() if ".h." in name and p.ndim == 2)
    rest = sum(p.numel() for p in model.parameters()) - matrices
    assert plan.device[f"moments of {optimizer}"] == 4 * (moments[0] * matrices + moments[1] * rest)
    assert plan.device["parameters"] == plan.device["gradient"] == 4 * (matrices + rest)
    assert plan.host_bytes(trains=True) - plan.host_bytes(trains=False) == plan.device_bytes()


def test_a_billion_parameters_fit_a_card_of_24_gb_beside_32_gb() -> None:
    model = read_preset("llama-1b").model
    run = draft_manifest("llama-1b", model, None, {"netuid": 1})
    shapes = parameter_shapes(dict(run.model.config), MOST_PARAMETERS)
    miner, validator = (memory_plan(run, shapes, role) for role in (Role.MINER, Role.VALIDATOR))
    assert miner.device_bytes() < 23.5 * GIB  # what an RTX 4090 has
    assert max(plan.host_bytes(trains=False) for plan in (miner, validator)) < 24 * GIB
    gpu, ram = memory_lines(run, shapes)
    assert "with one sequence at a time" in gpu and "moments of" in gpu and "a validator up to" in ram
