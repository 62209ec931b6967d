"""The inner learning rate as a function of the round's number and the step in it, never of work anybody did."""

from __future__ import annotations

import math

from distributed_training.manifest import InnerSection


def inner_learning_rate(inner: InnerSection, applied_rounds: int, step: int) -> float:
    """Learning rate of inner step `step` (from 0) in a round that starts after `applied_rounds` applied rounds.

    The clock is applied_rounds * nominal_steps + step (protocol section 4). Linear warm-up over `warmup_steps`,
    then a half cosine down to learning_rate * min_lr_ratio over `decay_steps`, constant after that.
    """
    if applied_rounds < 0 or step < 0:
        raise ValueError(f"expected applied_rounds >= 0 and step >= 0, got {applied_rounds} and {step}")
    position = applied_rounds * inner.nominal_steps + step
    if position < inner.warmup_steps:
        return inner.learning_rate * (position + 1) / inner.warmup_steps
    progress = min(1.0, (position - inner.warmup_steps) / max(1, inner.decay_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return inner.learning_rate * (inner.min_lr_ratio + (1.0 - inner.min_lr_ratio) * cosine)
