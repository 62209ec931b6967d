"""The train query on real training: one replay for who passes, a second one, rounded otherwise, for who does not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from tiny_training import AUDIT, GPT2, batches, loop, train

from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.auditing.query import Claim, Enough, train_query
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerResult, Tokens
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import KINDS
from distributed_training.training.replay import replay

RULES = AuditSection.model_validate(AUDIT)
STRICT = RULES.model_copy(update={"error_ok": 1e-6, "error_bad": 1e-5})  # bf16 against fp32 is a hard fail
START = to_flat(build_model(GPT2, 7))
DEPTH = 4


def half(data: Iterator[Tokens]) -> Iterator[Tokens]:
    return (np.concatenate([batch[:4], batch[:4]]) for batch in data)


def asked(
    made: InnerResult, optimizer: str, rules: AuditSection = RULES, *, vector: np.ndarray | None = None, data: int = 9
) -> tuple[AuditResult, list[int]]:
    """The verdict on what `made` says, and how many steps each replay had."""
    auditor, steps = loop(GPT2, optimizer=optimizer), list[int]()

    def replayed(otherwise: bool, enough: Enough) -> InnerResult:
        given = itertools.islice(batches(1), data)
        done = replay(
            auditor,
            START,
            given,
            applied_rounds=0,
            sketch_seed=b"seed",
            depth=DEPTH,
            enough=enough,
            otherwise=otherwise,
        )
        steps.append(len(done.steps))
        return done

    parts = None if vector is None else lambda: ((c, vector[c]) for c in (slice(0, 5000), slice(5000, None)))
    result = train_query(Claim(made.steps, parts, START), replayed, DEPTH, rules)
    assert auditor.precision == "fp32"
    return result, steps


@pytest.mark.parametrize("optimizer", KINDS)
def test_who_rounds_otherwise_passes_by_the_replay_that_does_too(optimizer: str) -> None:
    rough = train(loop(GPT2, optimizer=optimizer, precision="bf16"), START, batches(1), DEPTH)
    assert asked(rough, optimizer, vector=START - rough.end)[0].verdict is Verdict.PASS
    strictly, steps = asked(rough, optimizer, STRICT, vector=START - rough.end)
    assert (strictly.verdict, strictly.depth, steps) == (Verdict.PASS, DEPTH, [1, DEPTH])


def test_a_cheat_fails_twice_and_costs_no_step_more_than_needed() -> None:
    lazy = train(loop(GPT2), START, half(batches(1)), DEPTH)
    result, steps = asked(lazy, "adamw")
    assert (result.verdict, result.reason, result.depth, steps) == (Verdict.FAIL, "gradient", DEPTH, [1, 1])
    other = train(loop(GPT2), START, batches(2), DEPTH)
    honest = train(loop(GPT2), START, batches(1), DEPTH)
    assert asked(honest, "adamw", vector=START - honest.end)[1] == [DEPTH]
    result, steps = asked(honest, "adamw", vector=START - other.end)
    assert (result.reason, steps) == ("vector", [DEPTH, DEPTH])


def test_a_log_that_is_short_or_goes_on_without_data_fails() -> None:
    honest = train(loop(GPT2), START, batches(1), DEPTH)
    short: tuple[StepRecord, ...] = honest.steps[:2]
    assert asked(dataclasses.replace(honest, steps=short), "adamw")[0].reason == "log short"
    result, steps = asked(honest, "adamw", data=2)
    assert (result.reason, result.failed_step, steps) == ("no data", 2, [2, 2])


def test_an_excused_step_hides_nothing_that_follows_it() -> None:
    """Its first step differs from both replays by less than they do from each other: they end there, and go on."""
    honest, other = (train(loop(GPT2), START, batches(seed), DEPTH) for seed in (1, 2))
    rows = tuple(tuple(1.001 * x for x in row) for row in honest.steps[0].sketch)
    first = dataclasses.replace(honest.steps[0], sketch=rows)
    made = dataclasses.replace(honest, steps=(first, *honest.steps[1:]))
    again = [1, 1, DEPTH, DEPTH]
    result, steps = asked(made, "adamw", STRICT, vector=START - honest.end)
    assert (result.verdict, steps) == (Verdict.PASS, again)
    result, steps = asked(made, "adamw", STRICT, vector=START - other.end)
    assert (result.verdict, result.reason, steps) == (Verdict.FAIL, "vector", again)
    made = dataclasses.replace(honest, steps=(first, *other.steps[1:]))
    result, steps = asked(made, "adamw", STRICT)
    assert (result.verdict, result.failed_step, steps) == (Verdict.FAIL, 1, again)
