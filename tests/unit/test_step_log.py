"""A step's numbers leave the device in bursts; what is not finite is found then, and nothing after it is work."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from distributed_training.errors import LocalFault
from distributed_training.protocol.rules.sketch import ParameterGroup
from distributed_training.protocol.types import StepRecord
from distributed_training.training.device_sketch import DeviceSketcher
from distributed_training.training.step_log import MOST, StepLog, flat_norm

GROUPS = (ParameterGroup("a", 0, 40), ParameterGroup("b", 40, 100))


def note(log: StepLog, step: int, began: float, bad: bool = False) -> None:
    gradient = torch.full((100,), math.nan if bad else float(step + 1))
    log.note(step, began, torch.full((2,), float(step)), flat_norm(gradient), gradient)
    log.end_step()


def test_records_come_one_by_one_or_in_bursts_and_are_the_same() -> None:
    seen = {bursts: list[int]() for bursts in (False, True)}
    logs = {}
    for bursts in seen:
        counts: list[int] = seen[bursts]

        def on_step(record: StepRecord, seconds: float, counts: list[int] = counts) -> None:
            counts.append(record.step)

        sketcher = DeviceSketcher(b"seed", GROUPS, 4, torch.device("cpu"))
        logs[bursts] = StepLog(sketcher, on_step, in_bursts=bursts)
        for step in range(MOST + 3):
            note(logs[bursts], step, began=_just_now())
            if bursts and step in (1, MOST - 1):
                assert counts == [0], "the first tells how long they take; a full burst is waited for"
        assert len(counts) == MOST + 3 if not bursts else len(counts) == MOST + 1
        logs[bursts].flush()
    assert seen[False] == seen[True] == list(range(MOST + 3))
    assert logs[False].records == logs[True].records
    assert logs[True].records[3].losses == (3.0, 3.0) and logs[True].records[3].grad_norm == 40.0


def test_steps_that_take_long_wait_for_nobody() -> None:
    log = StepLog(None, None, in_bursts=True)
    for step in range(4):
        note(log, step, began=_just_now() - 5.0)
        assert [record.step for record in log.records] == list(range(step + 1))


def test_a_step_that_is_not_finite_is_found_at_the_next_look_and_those_after_it_are_no_work() -> None:
    told: list[int] = []
    log = StepLog(None, lambda record, seconds: told.append(record.step), in_bursts=True)
    for step in range(6):
        note(log, step, began=_just_now(), bad=step >= 4)
    assert told == [0]
    with pytest.raises(LocalFault, match="loss or gradient of inner step 4 is not finite"):
        log.flush()
    assert told == [0, 1, 2, 3]
    log.flush()
    assert told == [0, 1, 2, 3]


@pytest.mark.parametrize("length", [5, (1 << 16) + 3, 3 << 16])
def test_the_norm_is_that_of_float64(length: int) -> None:
    flat = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    assert float(flat_norm(torch.from_numpy(flat))) == pytest.approx(np.linalg.norm(flat.astype(np.float64)), rel=1e-6)


def _just_now() -> float:
    return time.perf_counter()
