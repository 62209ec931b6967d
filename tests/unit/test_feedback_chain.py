"""From which feedback a record may start, whoever is included and whenever."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import group

from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.averaging.combine import next_carry
from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.localnet.judge.feedback_chain import ROUNDS, FeedbackChain
from distributed_training.protocol.rules.slices import FAILED_ROUNDS
from distributed_training.protocol.types import NO_ROOT, Carry, Signed, WorkRecord
from distributed_training.protocol.wire import decode_carry, encode_carry, encode_work, record_hash

G = group(3)
PLAN = replace(G.plan, uplink=SPARSE)
KEYS = [c.public_key for c in PLAN.candidates]


def signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return True


def root(index: int, sender: bytes) -> bytes:
    return bytes([1 + index, sender[0]]) + bytes(30)


def record(plan: RoundPlan, sender: bytes, start: bytes, end: bytes) -> WorkRecord:
    return replace(G.works[sender], codec=plan.uplink.id, feedback_start=start, feedback_end=end)


def checked(plan: RoundPlan, work: WorkRecord) -> None:
    candidate = plan.candidate(work.public_key)
    assert candidate is not None
    signed = Signed(encode_work(work), bytes(64))
    named = replace(candidate, record_hash=record_hash(signed.body))
    check_work(signed, named, plan, G.run, signed_by)


def settled(plan: RoundPlan, works: dict[bytes, WorkRecord], included: list[bytes]) -> RoundPlan:
    carry = next_carry(plan, (0, 1, 2), included, works, G.run)
    assert decode_carry(encode_carry(carry)) == carry
    return replace(plan, carry=carry, tau=carry.tau)


fates = st.lists(st.sampled_from(["included", "left out", "away", "nothing"]), min_size=3, max_size=3)
rounds = st.lists(st.tuples(fates, st.booleans()), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(rounds)
def test_who_follows_its_state_never_breaks_the_rule(played: list[tuple[list[str], bool]]) -> None:
    """Included, sent but not included, away, or with a buffer that was lost; rounds applied and discarded."""
    plan, chain, last = PLAN, FeedbackChain(), dict[bytes, tuple[bytes, int]]()
    for index, (what, applied) in enumerate(played):
        there = {k: fate for k, fate in zip(KEYS, what, strict=True) if fate != "away"}
        starts = {k: NO_ROOT if fate == "nothing" else plan.carry.left_by(k) for k, fate in there.items()}
        works = {k: record(plan, k, start, root(index, k)) for k, start in starts.items()}
        for k, work in works.items():
            checked(plan, work)
            ends = [end for end, since in [last.get(k, (NO_ROOT, 0))] if since < FAILED_ROUNDS]
            assert plan.carry.left_by(k) == (ends or [NO_ROOT])[0], "its last included end, for eight applied rounds"
        if applied:
            included = [k for k, fate in there.items() if fate != "left out"]
            last = {k: (end, since + 1) for k, (end, since) in last.items()}
            last |= {k: (works[k].feedback_end, 0) for k in included}
            assert chain.follow(plan, included, works) == []
            plan = settled(plan, works, included)


@pytest.mark.parametrize("late", range(ROUNDS + 2))
def test_a_vector_that_was_included_too_long_ago_is_forgotten(late: int) -> None:
    first, chain = KEYS[0], FeedbackChain()
    works = {k: record(PLAN, k, NO_ROOT, root(0, k)) for k in KEYS}
    assert chain.follow(PLAN, KEYS, works) == []
    plan = settled(PLAN, works, KEYS)
    for index in range(1, 1 + late):
        others = {k: record(plan, k, plan.carry.left_by(k), root(index, k)) for k in KEYS[1:]}
        assert chain.follow(plan, KEYS[1:], others) == []
        plan = settled(plan, others, KEYS[1:])
    again = record(plan, first, root(0, first), root(99, first))
    assert (plan.carry.left_by(first) == root(0, first)) == (late < ROUNDS)
    if late < ROUNDS:
        checked(plan, again)
        assert chain.follow(plan, [], {first: again}) == []
        return
    with pytest.raises(WireError, match="feedback that is not what its last included vector left"):
        checked(plan, again)
    (problem,) = chain.follow(plan, [], {first: again})
    assert "feedback that its last included vector did not leave" in problem


@pytest.mark.parametrize(
    "case", ["another's", "not included", "an older one", "made up", "no end", "of a codec without"]
)
def test_a_record_that_starts_elsewhere_is_refused(case: str) -> None:
    me, other = KEYS[0], KEYS[1]
    chain = FeedbackChain()
    works = {k: record(PLAN, k, NO_ROOT, root(0, k)) for k in KEYS}
    chain.follow(PLAN, KEYS, works)
    plan = settled(PLAN, works, KEYS)
    works = {k: record(plan, k, plan.carry.left_by(k), root(1, k)) for k in KEYS}
    chain.follow(plan, KEYS[:2], works)
    plan = settled(plan, works, KEYS[:2])
    starts = {"another's": root(1, other), "an older one": root(0, me), "made up": bytes([7] * 32)}
    who = KEYS[2] if case == "not included" else me
    start = root(1, KEYS[2]) if case == "not included" else starts.get(case, NO_ROOT)
    bad = record(plan, who, start, NO_ROOT if case == "no end" else root(2, who))
    if case == "of a codec without":
        plan = replace(plan, uplink=G.plan.uplink)
        bad = replace(bad, codec=plan.uplink.id)
    with pytest.raises(WireError, match=r"feedback that is not|not what its codec leaves out"):
        checked(plan, bad)
    assert len(chain.follow(plan, [], {who: bad})) == 1
    good = NO_ROOT if case == "of a codec without" else plan.carry.left_by(who)
    end = NO_ROOT if case == "of a codec without" else root(2, who)
    for fine in (good, NO_ROOT):
        checked(plan, replace(bad, feedback_start=fine, feedback_end=end))


def test_a_codec_that_keeps_nothing_costs_the_carry_nothing() -> None:
    carry = next_carry(G.plan, (0, 1, 2), KEYS, G.works, G.run)
    assert carry.left == () and carry == Carry(carry.tau, carry.failed)
    assert np.isfinite(carry.tau) and FAILED_ROUNDS == ROUNDS
