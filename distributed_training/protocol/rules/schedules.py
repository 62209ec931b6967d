"""The inner learning rate as a function of the round's number and the step in it, never of work anybody did."""

from __future__ import annotations

import math

from distributed_training.protocol.sections import InnerSection


def inner_learning_rate(inner: InnerSection, applied_rounds: int, step: int, *, fresh_moments: bool = True) -> float:
    """Learning rate of inner step `step` (from 0) in a round that starts after `applied_rounds` applied rounds.

    The clock is applied_rounds * nominal_steps + step (protocol section 4). Linear warm-up over `warmup_steps`,
    then a half cosine down to learning_rate * min_lr_ratio over `decay_steps`, constant after that. With fresh
    moments the first `ramp_steps` steps of the round take 1/ramp_steps, 2/ramp_steps, ... of that: AdamW without a past
    moves every coordinate by the full rate, whatever the gradient's size. Without a ramp of 4 the gradient norm spiked
    up to 186-fold at the second step of a round, and two honest runs that differ in rounding only drifted apart
    (4-layer model, rate 2e-3).
    """
    if applied_rounds < 0 or step < 0:
        raise ValueError(f"expected applied_rounds >= 0 and step >= 0, got {applied_rounds} and {step}")
    ramp = min(1.0, (step + 1) / inner.ramp_steps) if fresh_moments else 1.0
    return ramp * _scheduled(inner, applied_rounds * inner.nominal_steps + step)


def _scheduled(inner: InnerSection, position: int) -> float:
    if position < inner.warmup_steps:
        return inner.learning_rate * (position + 1) / inner.warmup_steps
    progress = min(1.0, (position - inner.warmup_steps) / max(1, inner.decay_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return inner.learning_rate * (inner.min_lr_ratio + (1.0 - inner.min_lr_ratio) * cosine)
