from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.rules.audit_plan import Depth, audit_beacon, audit_depth, plan, probe_chunks
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import WorkRecord

AUDIT = AuditSection(
    t0=2.0,
    full_share=0.02,
    sketch_size=32,
    probe_chunks=8,
    error_ok=0.02,
    error_bad=0.1,
    error_growth_steps=32.0,
    error_growth_max=4.0,
    norm_ok=0.03,
    norm_bad=0.15,
    loss_ok=0.01,
    loss_bad=0.05,
    vector_cosine_bad=0.9,
)
HARMONIC = AUDIT.model_copy(update={"full_share": 0.0})
BEACON = audit_beacon(bytes(range(32)), 7)
VALIDATOR = bytes([1]) * 32
keys = st.binary(min_size=32, max_size=32)


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def record(number: int, steps: int = 100, chunks: int = 40) -> WorkRecord:
    return WorkRecord(
        manifest=bytes(32),
        round=7,
        uid=number,
        public_key=key(number),
        state_root=bytes(32),
        steps=steps,
        tokens=steps * 2048,
        pages_root=bytes(32),
        log_root=bytes(32),
        wire_root=bytes(32),
        codec=1,
        chunk_norms=(1.0,) * chunks,
    )


def card(passes: float = 5.0, fails: float = 0.0, passed: bool = True) -> ScoreCard:
    return ScoreCard("hk", 1, 0, 0.1, passes, fails, 1.0, (), passed, 0, "", "")


def test_golden_values_never_change() -> None:
    miner = key(3)
    assert BEACON.hex() == "e4efefa8515884a9d3eacb7a393a9a347123078634897651b4dec5e2672ab9e8"
    assert audit_depth(BEACON, VALIDATOR, miner, 100, AUDIT) == Depth(length=3, full=False)
    assert probe_chunks(BEACON, VALIDATOR, miner, 210, 8) == (1, 19, 82, 91, 130, 165, 168, 196)


def test_beacon_depends_on_round_and_hash_and_wants_a_whole_hash() -> None:
    seen = {audit_beacon(bytes([h]) * 32, r) for h in range(3) for r in range(3)}
    assert len(seen) == 9
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        audit_beacon(bytes(31), 0)


def test_every_step_is_reached_with_probability_t0_over_t() -> None:
    trials = 8000
    lengths = [audit_depth(BEACON, VALIDATOR, key(i), 100, HARMONIC).length for i in range(trials)]
    for t in (1, 2, 3, 5, 10, 50, 100):
        expected = min(1.0, AUDIT.t0 / t)
        deviation = (expected * (1 - expected) / trials) ** 0.5
        measured = sum(length >= t for length in lengths) / trials
        assert abs(measured - expected) <= 5 * deviation
    assert abs(sum(lengths) / trials - 9.4) < 1.0  # the mean of 100 steps at t0 = 2 (facts 2.5)


def test_full_replays_come_at_their_share() -> None:
    depths = [audit_depth(BEACON, VALIDATOR, key(i), 100, AUDIT) for i in range(8000)]
    full = [d for d in depths if d.full]
    assert all(d.length == 100 for d in full)
    assert abs(len(full) / 8000 - 0.02) < 5 * (0.02 * 0.98 / 8000) ** 0.5


@given(keys, keys, keys, st.integers(0, 500))
def test_depth_lies_in_the_claimed_steps(beacon: bytes, validator: bytes, miner: bytes, steps: int) -> None:
    depth = audit_depth(beacon, validator, miner, steps, AUDIT)
    assert min(1, steps) <= depth.length <= steps
    assert depth.length >= min(steps, 2) or depth.full  # t0 = 2


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        audit_depth(BEACON, VALIDATOR, key(1), -1, AUDIT)
    with pytest.raises(ValueError, match="32 bytes"):
        audit_depth(BEACON, VALIDATOR + b"x", key(1), 1, AUDIT)


@given(keys, keys, keys, st.integers(0, 300), st.integers(0, 40))
def test_probe_chunks_are_distinct_sorted_and_in_range(
    beacon: bytes, validator: bytes, miner: bytes, num_chunks: int, count: int
) -> None:
    chunks = probe_chunks(beacon, validator, miner, num_chunks, count)
    assert len(chunks) == min(count, num_chunks)
    assert list(chunks) == sorted(set(chunks))
    assert all(0 <= c < num_chunks for c in chunks)


def test_every_subset_of_chunks_is_equally_likely() -> None:
    trials = 6000
    counts = Counter(probe_chunks(BEACON, VALIDATOR, key(i), 6, 3) for i in range(trials))
    expected = trials / 20
    assert set(counts) == set(combinations(range(6), 3))
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi2 < 50  # 19 degrees of freedom: p < 0.0002


def test_validators_draw_different_depths_and_chunks() -> None:
    other = bytes([2]) * 32
    assert probe_chunks(BEACON, VALIDATOR, key(1), 400, 8) != probe_chunks(BEACON, other, key(1), 400, 8)
    pairs = [[audit_depth(BEACON, v, key(i), 100, AUDIT) for i in range(50)] for v in (VALIDATOR, other)]
    assert pairs[0] != pairs[1]


@given(st.permutations(range(6)))
def test_plan_covers_everybody_whatever_the_order(order: list[int]) -> None:
    tasks = plan(BEACON, VALIDATOR, [record(i) for i in order], {}, AUDIT)
    assert tasks == plan(BEACON, VALIDATOR, [record(i) for i in range(6)], {}, AUDIT)
    assert sorted(t.uid for t in tasks) == list(range(6))


def test_plan_is_what_a_miner_computes_for_itself() -> None:
    (task,) = plan(BEACON, VALIDATOR, [record(4, steps=30, chunks=17)], {}, AUDIT)
    assert task.public_key == key(4)
    assert task.depth == audit_depth(BEACON, VALIDATOR, key(4), 30, AUDIT)
    assert task.chunks == probe_chunks(BEACON, VALIDATOR, key(4), 17, AUDIT.probe_chunks)


def test_urgency_newcomers_then_soft_failures_then_little_evidence() -> None:
    cards = {
        key(0): card(passes=9.0),
        key(1): card(passes=2.0),
        key(2): card(passes=4.0, fails=0.5),
        key(3): card(passes=0.0, passed=False),
    }
    tasks = plan(BEACON, VALIDATOR, [record(i) for i in range(5)], cards, AUDIT)
    assert {t.uid for t in tasks[:2]} == {3, 4}  # without a passed audit, or without a card
    assert [t.uid for t in tasks[2:]] == [2, 1, 0]


def test_equals_are_ordered_by_a_hash_of_the_beacon() -> None:
    miners = [record(i) for i in range(8)]
    orders = {
        tuple(t.uid for t in plan(audit_beacon(bytes([h]) * 32, 0), VALIDATOR, miners, {}, AUDIT)) for h in range(10)
    }
    assert len(orders) == 10


def test_no_steps_claimed_is_an_empty_replay() -> None:
    (task,) = plan(BEACON, VALIDATOR, [replace(record(1), steps=0)], {}, HARMONIC)
    assert task.depth == Depth(0, False)
