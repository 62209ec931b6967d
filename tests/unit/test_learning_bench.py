"""The learning benchmark does what nodes do: their steps, their averaging, their outer step; and repeats itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import D, group, reduced, whole

from benchmarks.learning_average import averaged
from benchmarks.learning_plan import Finished, failures, missing, read_finished, table
from benchmarks.learning_runs import ALONE, SYNCHRONOUS, TOGETHER, Model, Setting, play
from benchmarks.learning_stack import Stack
from benchmarks.learning_text import Text
from distributed_training.averaging.combine import combine
from distributed_training.errors import ConfigError
from distributed_training.protocol.rules.membership import Counted
from distributed_training.protocol.rules.schedules import inner_learning_rate
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model

TINY = Model(width=16, layers=1, heads=2, length=8, batch=2)
MUON = Setting(TOGETHER, "muon", (1, 1, 2), 2, 2, (0.8, 0.8), inner={"learning_rate": 8e-3}, model=TINY)
NUMBERS = np.random.default_rng(1).integers(0, 257, (96, 8))
TEXT = Text(NUMBERS[:80].astype(np.uint16), NUMBERS[80:])


def test_the_average_is_the_one_that_nodes_reduce_and_combine() -> None:
    g = group()
    counted = Counted(tuple(s.index for s in g.plan.slices), "applied", {s.index: () for s in g.plan.slices})
    made = combine(g.plan, counted, reduced(g), g.run)
    expected = whole(made, g.plan)
    tokens = [work.tokens for work in g.works.values()]
    average, tau = averaged(g.deltas, tokens, g.plan.tau, g.plan.layout, g.run.average)
    assert len(average) == D and average.tobytes() == expected.tobytes() and tau == made.carry.tau


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stacked_workers_take_the_inner_loops_steps(optimizer: str) -> None:
    manifest = replace(MUON, optimizer=optimizer).manifest()
    model = build_model(manifest.model.config, 1)
    start, steps = to_flat(model), (3, 2)
    batches = [TEXT.sequences(seed, 0, 2 * count).reshape(count, 2, 8) for seed, count in enumerate(steps)]
    stack, loop = Stack(manifest, 2, bf16=False), InnerLoop(model, manifest)
    stack.load(np.stack([start, start]))
    stack.train(batches, [inner_learning_rate(manifest.inner, 5, step) for step in range(3)])
    for own, end in zip(batches, stack.flats(), strict=True):
        result = loop.run(start, iter(own), applied_rounds=5, sketch_seed=None, max_steps=9, should_stop=lambda: False)
        assert np.linalg.norm(result.end - end) < 1e-4 * np.linalg.norm(result.end - start)
        assert loop.evaluate(result.end, TEXT.heldout, 8) == pytest.approx(stack.evaluate(end[None], TEXT.heldout)[0])


def test_a_run_repeats_to_the_byte_whatever_trains_beside_it() -> None:
    alone, again = (play(MUON, [3], TEXT)[0] for _ in range(2))
    assert alone == again and list(alone) == [0, 1, 2]
    assert play(MUON, [3, 4], TEXT)[0] == pytest.approx(alone, rel=1e-3)


def test_synchronous_workers_get_everybodys_sequences() -> None:
    together, synchronous = MUON, replace(MUON, who=SYNCHRONOUS, outer=None)
    assert (together.own_steps, synchronous.own_steps, synchronous.batch) == ((4, 2, 2), (4,), 4)
    assert together.tokens_a_round == synchronous.tokens_a_round == 8 * 2 * 8


def finished(who: str, losses: dict[int, float], **changes: Any) -> Finished:
    return Finished(replace(MUON, who=who, **changes), 1, losses, 0.5)


def test_finished_runs_are_kept_and_not_made_again(tmp_path: Path) -> None:
    kept = [finished(TOGETHER, {0: 5.5, 2: 2.25}), finished(ALONE, {0: 5.5, 2: 2.5}, speeds=(2,), fresh=False)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(run.line() + "\n" for run in kept))
    assert read_finished(path) == kept
    other = replace(MUON, steps=3)
    assert list(missing([MUON, other], [1], kept)) == [other] and list(missing([MUON], [1, 2], kept)) == [MUON]
    path.write_text('{"seed": 1}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 1"):
        read_finished(path)


def test_a_run_is_compared_with_its_best_single_miner_at_as_many_steps() -> None:
    run = finished(TOGETHER, {1: 5.0, 4: 3.0, 5: 2.9, 6: 2.6, 10: 2.0}, rounds=10)
    single = finished(ALONE, {2: 4.0, 8: 3.0, 10: 2.9, 12: 2.7, 20: 2.4}, speeds=(2,), fresh=False, steps=1, rounds=20)
    ideal = finished(SYNCHRONOUS, {5: 2.0, 10: 1.4}, fresh=False, rounds=10)
    other_seed = replace(single, seed=2)
    [row] = table([run, other_seed, single, ideal])
    assert (row["single_best"], row["synchronous"], row["synchronous_adamw"]) == (2.4, 1.4, None)
    assert row["gained"] == pytest.approx(0.4) and row["behind_single"] == 5
    assert failures([row]) and not failures(table([replace(run, curve={5: 2.8, 10: 2.0}), single]))
    assert table([run])[0]["behind_single"] is None and table([single]) == []
