from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from itertools import combinations
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.rules.audit_plan import (
    Depth,
    _below,
    _unit,
    audit_beacon,
    audit_depth,
    could_find,
    plan,
    probe_chunks,
    proven,
    reach,
    voter_share,
)
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import NO_ROOT, Neuron, WorkRecord

AUDIT = AuditSection(
    mode="enforce",
    depth_share=0.02,
    newcomer_factor=2.0,
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
CAP = 100 * 2048  # tokens
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
        feedback_start=NO_ROOT,
        feedback_end=NO_ROOT,
        began_at=NO_ROOT,
        shift_step=0,
        chunk_norms=(1.0,) * chunks,
    )


def neuron(number: int, stake: float) -> Neuron:
    return Neuron(number, str(number), key(number), stake, True, 0, None, None, None, 0.0, 0.0, 0, bytes(32))


def card(passes: float = 5.0, fails: float = 0.0, passed: bool = True) -> ScoreCard:
    return ScoreCard("hk", 1, 0, (), 0.1, passes, fails, 1.0, (), passed, 0, "", "")


def test_golden_values_never_change() -> None:
    miner = key(3)
    assert BEACON.hex() == "e4efefa8515884a9d3eacb7a393a9a347123078634897651b4dec5e2672ab9e8"
    assert audit_depth(BEACON, VALIDATOR, miner, 100, AUDIT, 1.0) == Depth(length=3, full=False)
    drawn = [audit_depth(BEACON, VALIDATOR, key(i), 100, AUDIT, 0.4, proven=i % 2 == 0) for i in range(400)]
    assert blake2b(repr([(d.length, d.full) for d in drawn]).encode()).hexdigest()[:16] == "e1cdd9fd8e194916"
    assert probe_chunks(BEACON, VALIDATOR, miner, 210, 8) == (1, 19, 82, 91, 130, 165, 168, 196)


def test_beacon_depends_on_round_and_hash_and_wants_a_whole_hash() -> None:
    seen = {audit_beacon(bytes([h]) * 32, r) for h in range(3) for r in range(3)}
    assert len(seen) == 9
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        audit_beacon(bytes(31), 0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("share", "steps"), [(1.0, 100), (0.6, 100), (0.2, 100), (1.0, 20), (0.2, 20)])
def test_every_step_is_reached_with_its_probability(share: float, steps: int, known: bool) -> None:
    trials = 4000
    lengths = [audit_depth(BEACON, VALIDATOR, key(i), steps, AUDIT, share, proven=known).length for i in range(trials)]
    for t in (1, 2, 3, 5, 10, steps // 2, steps):
        expected = reach(t, steps, AUDIT, share, proven=known)
        deviation = (expected * (1 - expected) / trials) ** 0.5
        measured = sum(length >= t for length in lengths) / trials
        assert abs(measured - expected) <= 5 * deviation


def test_reach_is_a_turn_by_stake_a_harmonic_depth_and_the_share_of_full_replays() -> None:
    assert reach(10, 100, HARMONIC, 1.0) == pytest.approx(0.2)
    assert reach(10, 100, HARMONIC, 0.25) == pytest.approx(0.05)
    assert reach(10, 100, HARMONIC, 0.25, proven=False) == pytest.approx(0.1)  # twice as often
    assert reach(2, 100, HARMONIC, 0.25, proven=False) == pytest.approx(0.5)
    assert reach(10, 100, HARMONIC, 1.0, proven=False) == pytest.approx(0.4)  # twice as deep
    assert reach(100, 100, AUDIT, 0.5) == pytest.approx(0.01 + 0.99 * 0.01)
    assert reach(1, 100, HARMONIC, 0.1, proven=False) == 1.0
    assert reach(2, 4, HARMONIC, 1.0) == 0.5  # short claims: as if depth_share * steps were 1


@pytest.mark.parametrize("count", [1, 5, 40])
def test_validators_together_reach_a_step_as_often_however_many_they_are(count: int) -> None:
    missed = (1.0 - reach(40, 100, AUDIT, 1 / count)) ** count
    alone = reach(40, 100, AUDIT, 1.0)
    assert alone * 0.95 < 1.0 - missed <= alone + 1e-12


@pytest.mark.parametrize(("steps", "validators"), [(100, 1), (500, 1), (500, 5), (500, 64), (2059, 64)])
def test_all_replays_of_a_claim_cost_an_eighth_of_it_at_most(validators: int, steps: int) -> None:
    """c (1 + ln 1/c) + full_share, however many validators there are."""
    audit = AUDIT.model_copy(update={"depth_share": 0.02, "full_share": 0.01})
    cost = sum(reach(t, steps, audit, 1 / validators) for t in range(1, steps + 1)) * validators / steps
    assert cost < 0.12
    assert cost == pytest.approx(0.02 * (1 + log(1 / 0.02)) + 0.01, abs=0.006)


def test_full_replays_come_at_their_share_of_the_stake_and_where_the_depth_is_the_end() -> None:
    for share in (1.0, 0.25):
        depths = [audit_depth(BEACON, VALIDATOR, key(i), 100, AUDIT, share) for i in range(8000)]
        full, expected = [d for d in depths if d.full], share * (0.02 + 0.02)
        assert all(d.full == (d.length == 100) for d in depths)
        assert abs(len(full) / 8000 - expected) < 5 * (expected / 8000) ** 0.5


@given(keys, keys, keys, st.integers(0, 500), st.floats(0, 1), st.booleans())
def test_depth_lies_in_the_claimed_steps_and_full_is_public(
    beacon: bytes, validator: bytes, miner: bytes, steps: int, share: float, known: bool
) -> None:
    depth = audit_depth(beacon, validator, miner, steps, AUDIT, share, proven=known)
    plain = audit_depth(beacon, validator, miner, steps, AUDIT, share)
    assert min(int(not known), steps) <= depth.length <= steps
    assert depth.full == plain.full and depth.length >= plain.length


def test_the_share_is_the_part_of_the_voters_stake() -> None:
    voters = [neuron(0, 30.0), neuron(1, 10.0)]
    assert [voter_share(voters, key(i)) for i in range(3)] == [0.75, 0.25, 0.0]
    assert voter_share([neuron(0, 0.0), neuron(1, 0.0)], key(1)) == 0.5
    assert voter_share([], key(1)) == 0.0


def test_proven_is_who_has_earned_half_of_what_it_claims() -> None:
    assert not proven(None, 0.0) and not proven(card(passed=False), 0.0)
    assert proven(card(), 0.2) and not proven(card(), 0.3)  # S = 0.1


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        audit_depth(BEACON, VALIDATOR, key(1), -1, AUDIT, 1.0)
    with pytest.raises(ValueError, match="32 bytes"):
        audit_depth(BEACON, VALIDATOR + b"x", key(1), 1, AUDIT, 1.0)


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
    pairs = [[audit_depth(BEACON, v, key(i), 100, AUDIT, 0.5) for i in range(50)] for v in (VALIDATOR, other)]
    assert pairs[0] != pairs[1]


@given(st.permutations(range(6)))
def test_plan_covers_everybody_whatever_the_order(order: list[int]) -> None:
    tasks = plan(BEACON, VALIDATOR, [record(i) for i in order], {}, AUDIT, 1.0, CAP)
    assert tasks == plan(BEACON, VALIDATOR, [record(i) for i in range(6)], {}, AUDIT, 1.0, CAP)
    assert sorted(t.uid for t in tasks) == list(range(6))


def test_plan_is_what_a_miner_computes_for_itself() -> None:
    (task,) = plan(BEACON, VALIDATOR, [record(4, steps=30, chunks=17)], {}, AUDIT, 0.5, CAP)
    assert task.public_key == key(4)
    assert task.depth == audit_depth(BEACON, VALIDATOR, key(4), 30, AUDIT, 0.5, proven=False)
    assert task.chunks == probe_chunks(BEACON, VALIDATOR, key(4), 17, AUDIT.probe_chunks)


def test_urgency_newcomers_then_soft_failures_then_little_evidence() -> None:
    cards = {
        key(0): card(passes=9.0),
        key(1): card(passes=2.0),
        key(2): card(passes=4.0, fails=0.5),
        key(3): card(passes=0.0, passed=False),
    }
    tasks = plan(BEACON, VALIDATOR, [record(i) for i in range(5)], cards, AUDIT, 1.0, CAP)
    assert {t.uid for t in tasks[:2]} == {3, 4}  # without a passed audit, or without a card
    assert [t.uid for t in tasks[2:]] == [2, 1, 0]


def test_equals_are_ordered_by_a_hash_of_the_beacon() -> None:
    miners = [record(i) for i in range(8)]
    orders = {
        tuple(t.uid for t in plan(audit_beacon(bytes([h]) * 32, 0), VALIDATOR, miners, {}, AUDIT, 1.0, CAP))
        for h in range(10)
    }
    assert len(orders) == 10


def test_who_claims_more_than_it_has_earned_is_looked_at_more_deeply() -> None:
    def mean(earned: float) -> float:
        cards = {key(i): replace(card(), steps=earned) for i in range(400)}
        tasks = plan(BEACON, VALIDATOR, [record(i) for i in range(400)], cards, HARMONIC, 0.2, CAP)
        return sum(t.depth.length for t in tasks) / 400

    assert mean(0.49) > 1.5 * mean(0.5)
    lengths = {t.depth.length for t in plan(BEACON, VALIDATOR, [record(i) for i in range(99)], {}, HARMONIC, 0.01, CAP)}
    assert min(lengths) == 1  # every validator looks at step 0 of everybody it does not know


def test_no_steps_claimed_is_an_empty_replay() -> None:
    (task,) = plan(BEACON, VALIDATOR, [replace(record(1), steps=0)], {}, HARMONIC, 1.0, CAP)
    assert task.depth == Depth(0, False)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_whatever_a_look_finds_its_validator_could_find(share: float) -> None:
    audit, steps = AUDIT.model_copy(update={"full_share": 0.1}), 500
    found = set[bool]()
    for n in range(300):
        miner = n.to_bytes(32, "little")
        for known in (True, False):
            depth = audit_depth(BEACON, VALIDATOR, miner, steps, audit, share, proven=known)
            drawn = BEACON, VALIDATOR, miner, steps, audit, share
            assert depth.length == 0 or could_find(*drawn, depth.length, False)
            assert could_find(*drawn, steps, True) is depth.full
            found.add(could_find(*drawn, steps, False))
    assert False in found, "not whatever it likes"


def test_draws_are_uniform_to_the_last_bit() -> None:
    assert (_unit(bytes(8)), _unit(b"\xff" * 8)) == (2.0**-53, 1.0)
    assert _below(iter([2**64 - 1, 5]), 3) == 2, "a word above the largest multiple of 3 is skipped"
    assert _below(iter([2**64 - 2]), 3) == 2
