from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import GPT2, INNER, LLAMA, batches, loop, manifest, train

from distributed_training.errors import DataUnavailable, LocalFault
from distributed_training.metrics.base import Metrics
from distributed_training.metrics.jsonl import JsonlSink
from distributed_training.protocol.rules.fidelity import gradient_error
from distributed_training.protocol.types import StepRecord
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.parts import TrainingThread
from distributed_training.training.flat import loss_per_sequence, to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import KINDS
from distributed_training.training.outer import initial_state
from distributed_training.training.replay import replay

START = to_flat(build_model(GPT2, 7))
with_each = pytest.mark.parametrize("optimizer", KINDS)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@with_each
def test_equal_inputs_give_equal_bytes_whatever_ran_before(config: dict[str, Any], optimizer: str) -> None:
    start = to_flat(build_model(config, 7))
    one, other = loop(config, optimizer=optimizer), loop(config, optimizer=optimizer)
    train(other, start + np.float32(0.01), batches(9), 3)
    first, second = train(one, start, batches(1), 6), train(other, start, batches(1), 6)
    assert first.end.tobytes() == second.end.tobytes()
    assert first.steps == second.steps


@with_each
def test_replay_of_a_prefix_is_bit_for_bit_the_original(optimizer: str) -> None:
    original = train(loop(GPT2, optimizer=optimizer), START, batches(1), 8)
    again = replay(loop(GPT2, optimizer=optimizer), START, batches(1), applied_rounds=0, sketch_seed=b"seed", depth=5)
    assert again.steps == original.steps[:5]
    full = replay(loop(GPT2, optimizer=optimizer), START, batches(1), applied_rounds=0, sketch_seed=b"seed", depth=8)
    assert full.end.tobytes() == original.end.tobytes()


def test_replay_stops_when_it_has_seen_enough_or_the_data_end() -> None:
    arguments: dict[str, Any] = {"applied_rounds": 0, "sketch_seed": b"seed", "depth": 6}
    early = replay(loop(GPT2), START, batches(1), enough=lambda record: record.step == 1, **arguments)
    assert [record.step for record in early.steps] == [0, 1]
    short = replay(loop(GPT2), START, itertools.islice(batches(1), 3), **arguments)
    assert len(short.steps) == 3


def test_a_cancelled_replay_judges_nobody() -> None:
    calls = itertools.count()
    with pytest.raises(LocalFault, match="cancelled"):
        replay(
            loop(GPT2),
            START,
            batches(1),
            applied_rounds=0,
            sketch_seed=b"s",
            depth=6,
            cancelled=lambda: next(calls) > 2,
        )


@with_each
def test_training_lowers_the_loss_on_unseen_batches(optimizer: str) -> None:
    inner = loop(GPT2, optimizer=optimizer)
    heldout = np.concatenate(list(itertools.islice(batches(99), 4)))
    end = train(inner, START, batches(1), 40, applied_rounds=2).end
    assert inner.evaluate(end, heldout, 8) < inner.evaluate(START, heldout, 8) - 0.5


def test_first_step_is_adamw_on_the_clipped_mean_gradient() -> None:
    """Against a plain formula: zero moments, bias correction, decay of matrices only, warm-up and ramp."""
    batch = next(batches(1))
    model = build_model(GPT2, 7)
    loss_per_sequence(model, torch.from_numpy(batch)).mean().backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    norm = float(torch.sqrt(sum((g**2).sum() for g in gradients.values())))  # pyright: ignore[reportArgumentType]
    rate = INNER["learning_rate"] / INNER["warmup_steps"] / INNER["ramp_steps"]
    expected: list[np.ndarray] = []
    for name, parameter in model.named_parameters():
        clipped = gradients[name] * min(1.0, INNER["clip_norm"] / norm)
        decay = INNER["weight_decay"] if parameter.ndim >= 2 else 0.0
        updated = parameter.detach().double() * (1 - rate * decay) - rate * clipped / (
            clipped.abs() + INNER["options"]["epsilon"]
        )
        expected.append(updated.numpy().reshape(-1))
    result = train(loop(GPT2), START, batches(1), 1)
    assert norm > INNER["clip_norm"]
    assert result.steps[0].grad_norm == pytest.approx(norm, rel=1e-5)  # before clipping
    moved = np.concatenate(expected) - START
    assert np.linalg.norm(result.end - START - moved) < 0.01 * np.linalg.norm(moved)


def test_the_log_is_of_the_unclipped_mean_gradient() -> None:
    inner = loop(GPT2)
    record = train(inner, START, batches(1), 1).steps[0]
    sketched = np.sqrt(sum(np.square(row).sum() for row in record.sketch))
    assert record.grad_norm > INNER["clip_norm"]
    assert sketched == pytest.approx(record.grad_norm, rel=0.3)
    assert [len(row) for row in record.sketch] == [32] * len(inner.groups)
    numbers = (*record.losses, *itertools.chain.from_iterable(record.sketch))
    assert all(float(np.float16(x)) == x for x in numbers)
    assert float(np.float32(record.grad_norm)) == record.grad_norm


def test_losses_are_per_sequence_in_order() -> None:
    batch = next(batches(1))
    record = train(loop(GPT2), START, iter([batch]), 1).steps[0]
    alone = [train(loop(GPT2), START, iter([batch[i : i + 1]]), 1).steps[0].losses[0] for i in range(8)]
    assert np.allclose(record.losses, alone, atol=4e-3)
    assert len(set(record.losses)) > 4


@pytest.mark.parametrize("size", [1, 3, 8])
@with_each
def test_micro_batches_change_rounding_only(size: int, optimizer: str) -> None:
    whole = train(loop(GPT2, optimizer=optimizer), START, batches(1), 3)
    parts = train(loop(GPT2, micro_batch=size, optimizer=optimizer), START, batches(1), 3)
    assert np.allclose(whole.end, parts.end, atol=2e-5)
    for a, b in zip(whole.steps, parts.steps, strict=True):
        assert np.allclose(a.sketch, b.sketch, atol=2e-3)


def test_bfloat16_changes_the_log_a_little_on_any_device() -> None:
    whole, rough = (train(loop(GPT2, precision=p), START, batches(1), 1).steps[0] for p in ("fp32", "bf16"))
    assert 0.0 < gradient_error(rough, whole) < 0.02
    assert train(loop(GPT2, precision="auto"), START, batches(1), 1).steps == (whole,)


def test_stop_is_looked_at_before_each_step() -> None:
    calls = itertools.count()
    result = train(loop(GPT2), START, batches(1), 10, should_stop=lambda: next(calls) == 3)
    assert [record.step for record in result.steps] == [0, 1, 2]
    assert result.steps == train(loop(GPT2), START, batches(1), 3).steps
    never = train(loop(GPT2), START, batches(1), 10, should_stop=lambda: True)
    assert never.steps == ()
    assert never.end.tobytes() == START.tobytes()


def test_the_end_of_the_data_ends_the_round_and_a_data_fault_goes_through() -> None:
    assert len(train(loop(GPT2), START, itertools.islice(batches(1), 2), 5).steps) == 2

    def broken() -> Any:
        yield next(batches(1))
        raise DataUnavailable("page 3")

    with pytest.raises(DataUnavailable):
        train(loop(GPT2), START, broken(), 5)


def test_each_step_is_reported_with_its_seconds() -> None:
    seen: list[tuple[StepRecord, float]] = []
    result = train(loop(GPT2), START, batches(1), 3, on_step=lambda record, seconds: seen.append((record, seconds)))
    assert tuple(record for record, _ in seen) == result.steps
    assert all(seconds > 0 for _, seconds in seen)


def test_the_schedule_follows_the_applied_rounds() -> None:
    early = train(loop(GPT2), START, batches(1), 1, applied_rounds=0).end
    late = train(loop(GPT2), START, batches(1), 1, applied_rounds=5).end
    assert np.linalg.norm(late - START) == pytest.approx(8 * np.linalg.norm(early - START), rel=0.05)


@with_each
def test_moments_are_fresh_unless_asked(optimizer: str) -> None:
    once = train(loop(GPT2, optimizer=optimizer), START, batches(1), 6)
    data = batches(1)
    split = loop(GPT2, optimizer=optimizer)
    middle = train(split, START, data, 3).end
    kept = split.run(
        middle, data, applied_rounds=0, sketch_seed=None, max_steps=3, should_stop=lambda: False, fresh_moments=False
    )
    reset = train(loop(GPT2, optimizer=optimizer), middle, itertools.islice(batches(1), 3, None), 3)
    # The clock restarts, so the rates differ; but the kept moments move on as the unbroken run's did.
    assert kept.steps[0].losses == once.steps[3].losses
    assert kept.steps[0].sketch == ()
    assert not np.allclose(kept.end, reset.end, atol=1e-5)


def test_divergence_is_our_own_trouble() -> None:
    start = START.copy()
    start[0] = np.nan
    with pytest.raises(LocalFault, match="step 0"):
        train(loop(GPT2), start, iter([np.zeros((8, 32), dtype=np.int64)]), 2)


def test_evaluate_is_the_plain_mean_and_does_not_depend_on_the_batch_size() -> None:
    inner = loop(GPT2)
    sequences = np.concatenate(list(itertools.islice(batches(5), 2)))[:13]
    model = build_model(GPT2, 7)
    with torch.no_grad():
        expected = float(loss_per_sequence(model, torch.from_numpy(sequences)).mean())
    assert inner.evaluate(START, sequences, 13) == pytest.approx(expected, rel=1e-6)
    assert inner.evaluate(START, sequences, 4) == pytest.approx(expected, rel=1e-6)


def test_a_stopped_evaluation_measures_nothing() -> None:
    asked = itertools.count()
    with pytest.raises(LocalFault, match="stopped"):
        loop(GPT2).evaluate(START, np.zeros((40, 32), np.int64), 4, should_stop=lambda: next(asked) == 3)
    assert next(asked) == 4, "it ends at the first batch that finds it stopped"


async def test_a_long_evaluation_does_not_hold_up_the_end_of_the_node(tmp_path: Path) -> None:
    run, training, events = manifest(GPT2), TrainingThread(), tmp_path / "events.jsonl"
    sequences = np.zeros((500_000, 32), np.int64)  # minutes
    metrics = Metrics([JsonlSink(events)], role="owner", uid=0)
    evaluator = Evaluator(run, training, loop(GPT2), lambda: sequences, metrics)
    task = asyncio.create_task(evaluator.evaluate(initial_state(START, run.average), 3))
    await asyncio.sleep(0.2)
    assert not task.done()
    task.cancel()
    began = time.monotonic()
    training.close()
    assert time.monotonic() - began < 5
    metrics.close()
    assert not events.exists() or not events.read_text()


def test_a_micro_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch"):
        InnerLoop(build_model(GPT2, 0), manifest(GPT2), micro_batch=0)
