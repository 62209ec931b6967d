from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.protocol.rules.sketch import COEFFICIENT_RMS, ParameterGroup, Sketch, coefficients, round_fp16
from distributed_training.training.device_sketch import DeviceSketcher

GROUPS = (ParameterGroup("a", 0, 1000), ParameterGroup("b", 1000, 1007), ParameterGroup("c", 1007, 5000))
GOLDEN = ([223, 7, -105, 23, -123, 175], [-17, -205, 51, -139, -65, -25])


def vector(seed: int, length: int = 5000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=length).astype(np.float32)


def sketched(seed: bytes, flat: np.ndarray, groups: tuple[ParameterGroup, ...] = GROUPS, size: int = 32) -> Sketch:
    sums = DeviceSketcher(seed, groups, size, torch.device("cpu")).sketch(torch.from_numpy(flat))
    return tuple(round_fp16(row) for row in sums.numpy())


def drawn(seed: bytes, size: int = 32, groups: tuple[ParameterGroup, ...] = GROUPS) -> list[np.ndarray]:
    return [coefficients(seed, index, group.stop - group.start, size) for index, group in enumerate(groups)]


def test_coefficients_are_odd_and_of_the_declared_size() -> None:
    rows = np.concatenate([c.reshape(-1) for c in drawn(b"s")]).astype(np.int64)
    assert (rows % 2 != 0).all()
    assert rows.min() == -255
    assert rows.max() == 255
    assert abs(math.sqrt((rows**2).mean()) / COEFFICIENT_RMS - 1.0) < 0.03
    assert abs(rows.mean()) < 10.0


def test_coefficients_are_frozen() -> None:
    """Golden vector: another stream would make every log of a running network wrong."""
    first = drawn(b"golden")
    assert first[0][0, :6].tolist() == GOLDEN[0]
    assert first[2][0, :6].tolist() == GOLDEN[1]


def test_sketch_is_the_plain_definition() -> None:
    flat = vector(0)
    for group, rows, found in zip(GROUPS, drawn(b"s"), sketched(b"s", flat), strict=True):
        expected = np.zeros(32)
        for i in range(group.stop - group.start):
            expected[i % 32] += float(flat[group.start + i]) * int(rows[i // 32, i % 32])
        assert np.allclose(found, expected / COEFFICIENT_RMS, rtol=1e-3, atol=1e-3)


def test_blocks_do_not_show_in_the_result() -> None:
    """A group longer than one internal block of 65,536 numbers, against one product over everything."""
    length = 3 * (1 << 16) + 77
    flat, whole = vector(1, length), (ParameterGroup("a", 0, length),)
    rows = drawn(b"s", groups=whole)[0].astype(np.float64)
    padded = np.zeros(rows.size)
    padded[:length] = flat
    expected = (padded.reshape(rows.shape) * rows).sum(axis=0) / COEFFICIENT_RMS
    assert np.allclose(sketched(b"s", flat, whole)[0], expected, rtol=1e-3)


def test_expected_squared_norm_is_that_of_the_group() -> None:
    flat = vector(2)
    ratios = np.array(
        [
            [
                np.square(row).sum() / np.square(flat[g.start : g.stop]).sum()
                for g, row in zip(GROUPS, sketched(seed.to_bytes(2, "big"), flat), strict=True)
            ]
            for seed in range(400)
        ]
    )
    # One sketch has a standard deviation of about sqrt(2 / 32); the mean of 400 of 0.0125.
    assert np.abs(ratios.mean(axis=0) - 1.0).max() < 0.06


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-4.0, 4.0), st.sampled_from([1, 5, 32]))
def test_the_map_is_linear(seed: int, factor: float, size: int) -> None:
    a, b = vector(seed), vector(seed + 1)
    whole, one, other = (np.array(sketched(b"linear", v, size=size)) for v in (a + np.float32(factor) * b, a, b))
    parts = one + factor * other
    assert np.allclose(whole, parts, rtol=2e-3, atol=2e-3 * (1 + np.abs(parts).max()))


def test_seed_and_group_choose_the_stream() -> None:
    same = (ParameterGroup("a", 0, 500), ParameterGroup("b", 500, 1000))
    flat = np.tile(vector(3, 500), 2)
    first, second = sketched(b"x", flat, same, 16)
    assert first != second
    assert sketched(b"x", flat, same, 16) == (first, second)
    assert sketched(b"y", flat, same, 16)[0] != first


def test_values_are_fp16_and_clipped() -> None:
    assert round_fp16(np.array([1e9, -1e9, 0.1])) == (65504.0, -65504.0, float(np.float16(0.1)))
    assert math.isnan(round_fp16(np.array([np.nan]))[0])
    flat = vector(4) * np.float32(1e8)
    assert max(abs(x) for row in sketched(b"s", flat, size=8) for x in row) == 65504.0


@pytest.mark.parametrize(("groups", "size"), [(GROUPS, 0), ((ParameterGroup("a", 3, 3),), 8)])
def test_empty_shapes_are_refused(groups: tuple[ParameterGroup, ...], size: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        DeviceSketcher(b"s", groups, size, torch.device("cpu"))
