"""Averaging weights and the norm gate (protocol section 6). float64 on public numbers, cast once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from distributed_training.protocol.sections import AverageSection

SMALLEST_SHARE = 1e-30


def lower_median(values: Sequence[float]) -> float:
    """The smaller of the two middle values of an even number. Raises ValueError for none."""
    if not values:
        raise ValueError("no median of nothing")
    return sorted(values)[(len(values) - 1) // 2]


def next_tau(norms: Sequence[float], former: float, average: AverageSection) -> float:
    """Clip threshold after an applied round: factor x lower median of the included norms."""
    return average.tau_factor * lower_median(norms) if norms else former


def raw_weight(tokens: int, norm: float, tau: float, average: AverageSection) -> float:
    """a_i = w_i * min(1, tau / ||x||), w_i = min(tokens, cap) or its square root (`weight_by`); a zero vector weighs
    nothing.

    The root where miners differ in speed: many steps of one miner say less than as many of several, whose noise
    averages out (measured: docs/learning.md). Pay goes by tokens alone.
    """
    if norm <= 0 or tokens <= 0:
        return 0.0
    tokens = min(tokens, average.token_cap)
    return (math.sqrt(tokens) if average.weight_by == "root_tokens" else tokens) * min(1.0, tau / norm)


def shares(raw: Sequence[float]) -> tuple[np.float32, ...]:
    """Weights of the included senders of one chunk: divided by their sum in float64, cast once to fp32.

    A share below SMALLEST_SHARE is zero: no share is subnormal, whatever the CPU's flush mode.
    """
    total = math.fsum(raw)
    return tuple(np.float32(a / total if a / total >= SMALLEST_SHARE else 0.0) for a in raw)


def lacks_senders(num_expected: int, num_missing: int) -> bool:
    """True: the chunk is replaced by zero, for it lost too many senders and would tilt the update.

    `num_expected` senders are included by at least half of the counted chunks; `num_missing` of those are missing here.
    """
    return num_missing > 1 and 3 * num_missing > num_expected


def passes_gate(
    output_norm: float, rounding_norm: float, included: Sequence[tuple[float, float]], average: AverageSection
) -> bool:
    """False: the chunk is replaced by zero.

    included: (raw weight, declared chunk norm) of every sender in the chunk. `rounding_norm`: how far the output's
    encoding may have moved it, from its own scales; a small share of its norm at most, so a liar gains little. An
    honest weighted mean obeys the triangle inequality, and nobody's is zero.
    """
    if not included:
        return output_norm == 0.0
    total = math.fsum(a for a, _ in included)
    bound = math.fsum(a / total * norm for a, norm in included)
    return output_norm <= average.gate_factor * bound + rounding_norm
