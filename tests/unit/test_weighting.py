from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import RUN

from distributed_training.averaging.codecs.base import Chunk, Layout, Vector
from distributed_training.averaging.codecs.int8 import encode_chunk
from distributed_training.protocol.rules.weighting import (
    lacks_senders,
    lower_median,
    next_tau,
    passes_gate,
    raw_weight,
    shares,
)
from distributed_training.protocol.types import vector_norm

AVERAGE = RUN.average.model_copy(update={"token_cap": 1000, "tau_factor": 1.5, "gate_factor": 1.02})
positive = st.floats(1e-20, 1e20)


@pytest.mark.parametrize(
    ("tokens", "norm", "expected"),
    [
        (500, 1.0, 500.0),
        (1000, 2.0, 1000.0),  # exactly at tau, exactly at the cap
        (5000, 1.0, 1000.0),  # capped
        (500, 8.0, 125.0),  # clipped to tau / norm
        (5000, 4.0, 500.0),  # both
        (0, 1.0, 0.0),
        (500, 0.0, 0.0),  # a zero vector weighs nothing
    ],
)
def test_raw_weight(tokens: int, norm: float, expected: float) -> None:
    assert raw_weight(tokens, norm, 2.0, AVERAGE) == expected


def test_by_the_root_four_times_the_tokens_weigh_twice_as_much() -> None:
    by_root = AVERAGE.model_copy(update={"weight_by": "root_tokens"})
    weights = [raw_weight(tokens, 1.0, 2.0, by_root) for tokens in (100, 400, 5000, 0)]
    assert weights == [10.0, 20.0, math.sqrt(1000), 0.0]
    assert raw_weight(400, 8.0, 2.0, by_root) == 5.0  # clipped alike


@settings(max_examples=100)
@given(st.integers(1, 10**9), positive, positive)
def test_no_contribution_exceeds_cap_times_tau(tokens: int, norm: float, tau: float) -> None:
    weight = raw_weight(tokens, norm, tau, AVERAGE)
    assert 0 < weight <= AVERAGE.token_cap
    assert weight * norm <= AVERAGE.token_cap * tau * (1 + 1e-12)


@settings(max_examples=100)
@given(st.lists(positive, min_size=1, max_size=8))
def test_vector_norm_is_exact_and_free_of_order(norms: list[float]) -> None:
    exact = sum((Fraction(n * n) for n in norms), Fraction())
    assert vector_norm(norms) == math.sqrt(exact) == vector_norm(norms[::-1]) == vector_norm(sorted(norms))


@settings(max_examples=100)
@given(st.lists(positive, min_size=1, max_size=8))
def test_shares_sum_to_one_and_keep_the_proportions(raw: list[float]) -> None:
    found = shares(raw)
    assert all(s.dtype == np.float32 for s in found)
    assert sum(map(float, found)) == pytest.approx(1.0, abs=1e-6)
    assert [float(s) for s in found] == pytest.approx([r / sum(raw) for r in raw], rel=1e-6, abs=2e-30)
    assert all(s == 0 or s > np.finfo(np.float32).tiny for s in found)  # never subnormal


def test_a_vanishing_share_is_zero() -> None:
    assert shares([1.0, 1e-31]) == (np.float32(1), np.float32(0))
    assert shares([1.0, 1e-29])[1] == np.float32(1e-29)


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], 3.0), ([2.0, 1.0], 1.0), ([3.0, 1.0, 2.0], 2.0), ([4.0, 3.0, 2.0, 1.0], 2.0)]
)
def test_lower_median(values: list[float], expected: float) -> None:
    assert lower_median(values) == expected


def test_no_median_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        lower_median([])


def test_tau_follows_the_included_norms() -> None:
    assert next_tau([1.0, 100.0, 4.0, 2.0], 7.0, AVERAGE) == 3.0
    assert next_tau([], 7.0, AVERAGE) == 7.0


# --- the gate ----------------------------------------------------------------------------------------

LAYOUT = Layout(512, 512, 128)


def mean(weights: list[float], vectors: list[Vector]) -> Vector:
    total = np.zeros(512, np.float32)
    for share, vector in zip(shares(weights), vectors, strict=True):
        total = np.add(total, vector * share, dtype=np.float32)
    return total


def sent(seed: int, count: int, shape: str) -> list[Chunk]:
    """Encoded vectors of `count` senders: independent, equal, opposed, heavy-tailed or nearly all zero."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(512)
    made = []
    for i in range(count):
        own = rng.standard_normal(512)
        vector = {
            "independent": own,
            "equal": base,
            "alike": base + 0.1 * own,
            "opposed": base * (-1) ** i + 0.01 * own,
            "heavy": own**5,
            "sparse": own * (rng.random(512) < 0.02),
            "scales": own * 10.0 ** rng.uniform(-8, 8),
        }[shape]
        made.append(encode_chunk(vector.astype(np.float32), LAYOUT))
    return made


@settings(max_examples=100)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8),
    st.sampled_from(["independent", "equal", "alike", "opposed", "heavy", "sparse", "scales"]),
)
def test_an_honest_average_passes_and_one_scaled_beyond_the_bound_does_not(
    seed: int, weights: list[float], shape: str
) -> None:
    chunks = sent(seed, len(weights), shape)
    norms = [c.norm() for c in chunks]
    included = list(zip(weights, norms, strict=True))
    average = mean(weights, [c.decode() for c in chunks])
    honest = encode_chunk(average, LAYOUT).norm()
    assert passes_gate(honest, 0.0, included, AVERAGE)
    bound = sum(w * n for w, n in included) / sum(weights)
    assert not passes_gate(1.03 * bound, 0.0, included, AVERAGE)
    if shape == "equal":  # nothing cancels: three percent more shows at once
        scaled = encode_chunk(average * np.float32(1.03), LAYOUT)
        assert not passes_gate(scaled.norm(), 0.0, included, AVERAGE)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_honest_output_passes_whatever_its_rounding(data: st.DataObject) -> None:
    """One peak a block makes its scale, and every other coordinate sits half way between two codes: the worst case."""
    block, length = data.draw(st.sampled_from([16, 64, 512])), data.draw(st.integers(1, 1024))
    layout, count = Layout(length, 1024, block), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    offset = data.draw(st.floats(0, 1))
    vectors: list[Vector] = []
    for _ in range(count):
        vector = (rng.integers(-2, 3, length) + offset).astype(np.float32) * np.float32(data.draw(st.floats(1e-9, 1e9)))
        vector[:: data.draw(st.integers(1, 600))] *= np.float32(data.draw(st.floats(1, 200)))
        vectors.append(vector)
    encoded = [encode_chunk(v, layout) for v in vectors]
    weights = [data.draw(st.floats(1e-3, 1e3)) for _ in vectors]
    total: Vector = np.zeros(length, np.float32)
    for share, sent in zip(shares(weights), encoded, strict=True):
        total = np.add(total, sent.decode() * share, dtype=np.float32)
    output = encode_chunk(total, layout)
    included = [(w, e.norm()) for w, e in zip(weights, encoded, strict=True)]
    norm, slack = output.norm(), output.rounding_norm()
    assert passes_gate(norm, slack, included, AVERAGE)
    assert slack <= norm * math.sqrt(block) / 254 * (1 + 1e-6)  # what a liar gains by it is bounded
    moved = np.linalg.norm(output.decode().astype(np.float64) - total.astype(np.float64))
    assert moved <= slack * (1 + 1e-5)


def test_a_contrived_block_needs_the_slack() -> None:
    """A peak of 127 beside 511 coordinates that all round from 5.505 up to 6: 4.5 % longer, honestly."""
    values = np.full(512, 5.505, np.float32)
    values[0] = 127.0
    layout, exact = Layout(512, 512, 512), float(np.linalg.norm(values.astype(np.float64)))
    output = encode_chunk(values, layout)
    norm, slack = output.norm(), output.rounding_norm()
    assert norm > 1.045 * exact and not passes_gate(norm, 0.0, [(1.0, exact)], AVERAGE)
    assert passes_gate(norm, slack, [(1.0, exact)], AVERAGE)
    assert not passes_gate(1.2 * exact, slack, [(1.0, exact)], AVERAGE)


def test_the_gate_is_at_the_factor() -> None:
    included = [(3.0, 2.0), (1.0, 6.0)]  # weighted mean of the norms: 3
    assert passes_gate(3.0 * 1.02, 0.0, included, AVERAGE)
    assert not passes_gate(np.nextafter(3.0 * 1.02, 4), 0.0, included, AVERAGE)
    assert not passes_gate(float("inf"), 0.0, included, AVERAGE)
    assert passes_gate(0.0, 0.0, [], AVERAGE) and not passes_gate(1e-30, 0.5, [], AVERAGE)  # without any sender


@pytest.mark.parametrize(
    ("expected", "missing", "passes"),
    [
        (1, 1, True),  # one missing sender never closes the gate
        (2, 1, True),
        (2, 2, False),
        (5, 2, False),  # 2 of 5 is more than a third
        (6, 2, True),  # exactly a third
        (9, 3, True),
        (9, 4, False),
        (8, 0, True),
    ],
)
def test_missing_senders(expected: int, missing: int, passes: bool) -> None:
    assert lacks_senders(expected, missing) is not passes
