from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from samples import BEACON, RUN, SMALL, Senders, deltas, failed, group, key, reduced, small_run, whole

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.int8 import encode_chunk
from distributed_training.averaging.combine import (
    SliceOutput,
    combine,
    discarded,
    next_carry,
    reduce_slice,
)
from distributed_training.averaging.members import sender_weight
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.duty import SLOPE, tolerant
from distributed_training.protocol.rules.membership import Counted
from distributed_training.protocol.rules.weighting import lower_median
from distributed_training.protocol.types import AverageOutcome, Carry


def counted(g: Senders, *which: int) -> Counted:
    chosen = which or tuple(s.index for s in g.plan.slices)
    return Counted(chosen, "applied", dict.fromkeys(chosen, ()))


def combined(
    plan: RoundPlan, what: Counted, outputs: Mapping[int, SliceOutput], run: RunManifest
) -> tuple[Vector, Carry, AverageOutcome]:
    made = combine(plan, what, outputs, run)
    return whole(made, plan), made.carry, made.outcome


def test_everything_counted_gives_the_weighted_mean() -> None:
    g = group()
    average, carry, outcome = combined(g.plan, counted(g), reduced(g), g.run)
    chunks = [c for j in range(4) for c in reduced(g)[j].chunks]
    joined = np.concatenate([c.decode() for c in chunks])
    assert average.dtype == np.float32 and average.tobytes() == joined.tobytes()
    weights = [sender_weight(g.works[key(i)], g.plan, g.run.average) for i in range(4)]
    exact = sum(w * d.astype(np.float64) for w, d in zip(weights, g.deltas, strict=True)) / sum(weights)
    assert np.abs(average - exact).max() < 0.02 * np.abs(exact).max()
    assert (outcome.applied, outcome.reason, outcome.round, outcome.num_slices) == (True, "applied", 3, 4)
    assert outcome.included == tuple(key(i) for i in range(4)) and outcome.counted == (0, 1, 2, 3)
    assert outcome.credit == {key(i): 1.0 for i in range(4)}
    assert carry.failed == ((),) and outcome.reduced == {key(i): 1.0 for i in range(4)}
    norms = [g.works[key(i)].norm for i in range(4)]
    assert carry.tau == 1.5 * lower_median(norms)


def test_the_order_of_outputs_does_not_matter() -> None:
    g = group(5, seed=7)
    outputs = reduced(g)
    backwards = dict(reversed(outputs.items()))
    one, two = (combined(g.plan, counted(g), o, SMALL) for o in (outputs, backwards))
    assert one[0].tobytes() == two[0].tobytes() and one[1:] == two[1:]


def test_a_slice_that_does_not_count_is_zero_and_its_reducer_failed() -> None:
    g = group()
    outputs = {j: made for j, made in reduced(g).items() if j != 1}
    average, carry, outcome = combined(g.plan, counted(g, 0, 2, 3), outputs, g.run)
    spec = g.plan.slices[1]
    low, high = g.plan.layout.coords(spec.first_chunk)[0], g.plan.layout.coords(spec.last_chunk - 1)[1]
    assert not average[low:high].any() and average[:low].any() and average[high:].any()
    assert carry.failed[-1] == (spec.reducer,) and outcome.reduced[spec.reducer] == 0.0
    assert outcome.counted == (0, 2, 3) and outcome.credit[key(0)] == 1.0


def test_a_slice_that_its_backup_reduced_counts_and_its_reducer_failed() -> None:
    g = group()
    outputs = reduced(g)
    spec = replace(g.plan.slices[1], reducer=g.plan.slices[2].reducer)
    whole = combined(g.plan, counted(g), outputs, g.run)
    outputs[1] = reduce_slice(g.plan, spec, g.received(), g.works, g.run)
    average, carry, outcome = combined(g.plan, counted(g), outputs, g.run)
    assert average.tobytes() == whole[0].tobytes() and outcome.credit == whole[2].credit
    assert (outcome.counted, outcome.backed_up) == ((0, 1, 2, 3), (1,)) and whole[2].backed_up == ()
    assert carry.failed[-1] == (g.plan.slices[1].reducer,) and whole[1].failed[-1] == ()
    assert outcome.reduced[g.plan.slices[1].reducer] == 0.0 and set(whole[2].reduced.values()) == {1.0}


def without(made: SliceOutput, who: int, rows: int | None = None) -> SliceOutput:
    """The output as if the first `rows` chunks (all by default) had not included sender `who`."""
    count = len(made.record.included) if rows is None else rows
    changed = tuple(
        tuple(b and not (i == who and n < count) for i, b in enumerate(row))
        for n, row in enumerate(made.record.included)
    )
    return replace(made, record=replace(made.record, included=changed))


def test_inclusion_and_credit_count_chunks() -> None:
    g = group()
    outputs = reduced(g)
    sizes = [len(o.chunks) for o in outputs.values()]
    assert sizes == [2, 2, 1, 2]
    two = {j: without(o, 3) if j in (1, 2) else o for j, o in outputs.items()}
    three = {j: without(o, 3) if j < 3 else o for j, o in outputs.items()}
    outcome = combined(g.plan, counted(g), two, g.run)[2]
    assert outcome.included == tuple(key(i) for i in range(4)), "4 of 7 chunks"
    left_out = {g.plan.slices[1].reducer, g.plan.slices[2].reducer}
    assert {k: x < 1.0 for k, x in outcome.reduced.items()} == {key(i): key(i) in left_out for i in range(4)}
    outcome = combined(g.plan, counted(g), three, g.run)[2]
    assert outcome.included == (key(0), key(1), key(2))
    assert outcome.credit == {key(0): 1.0, key(1): 1.0, key(2): 1.0, key(3): tolerant(2 / 7)}
    assert outcome.missing == {0: (key(3),), 1: (key(3),), 2: (key(3),)}


@pytest.mark.parametrize(("chunks", "most"), [(6, 3), (7, 3), (8, 4)])
def test_a_slice_includes_a_sender_by_half_of_its_chunks(chunks: int, most: int) -> None:
    g = Senders(deltas(1, 1, 64 * chunks), small_run(max_reducers=1))  # one slice, one sender
    made = reduced(g)[0]
    assert combined(g.plan, counted(g), {0: without(made, 0, most)}, g.run)[2].included == (key(0),)
    assert combined(g.plan, counted(g), {0: without(made, 0, most + 1)}, g.run)[2].included == ()


def test_only_expected_senders_can_be_missing() -> None:
    g = group(4)
    received = g.received()
    received[key(3)] = {}  # nobody expects 3: no slice has it
    del received[key(2)][0]
    average, _, outcome = combined(g.plan, counted(g), reduced(g, received), g.run)
    assert outcome.included == (key(0), key(1), key(2))
    assert average[:64].any()  # one of three is missing, which is allowed; two of four would not be


def test_a_chunk_that_lost_too_many_senders_is_zero_and_hardly_debits() -> None:
    g = group(4)
    outputs = reduced(g)
    spec = g.plan.slices[3]
    assert spec.last_chunk - spec.first_chunk == 2
    received = g.received()
    for who in (2, 3):
        del received[key(who)][spec.first_chunk]
    outputs[3] = reduce_slice(g.plan, spec, received, g.works, g.run)
    average, _, outcome = combined(g.plan, counted(g), outputs, g.run)
    first, second = (average[slice(*g.plan.layout.coords(spec.first_chunk + i))] for i in (0, 1))
    assert not first.any() and second.any()  # 2 of 4 missing
    assert outcome.credit == {key(i): 1.0 if i < 2 else tolerant(1.0, 6 / 7) for i in range(4)}
    assert outcome.reduced[spec.reducer] == tolerant(0.75)
    assert outcome.missing == {}, "half of the slice's chunks have them"
    assert len(outcome.included) == 4


def twelve() -> tuple[Senders, dict[int, SliceOutput]]:
    g = Senders(deltas(3, 12, 64 * 12), SMALL.model_copy(update={"max_uids": 16}))
    return g, reduced(g)


def test_reducers_below_a_third_take_next_to_nothing_from_whom_they_leave_out() -> None:
    """1, 2 or 3 of 12 took 8, 17 or 25 % of one victim's credit each, and all of it from its duty once more."""
    g, outputs = twelve()
    victim = max(g.made)
    liars = [s.index for s in g.plan.slices if s.reducer != victim]
    for count in (1, 2, 3):
        told = {j: without(o, 11) if j in liars[:count] else o for j, o in outputs.items()}
        outcome = combined(g.plan, counted(g), told, g.run)[2]
        assert 1 - SLOPE / 3 < outcome.credit[victim] < 1 and sorted(outcome.credit.values())[1] == 1.0
        assert all(outcome.reduced[g.plan.slices[j].reducer] < 1 for j in liars[:count])


def test_reducers_who_leave_everybody_else_out_take_little_and_lose_half_of_their_duty() -> None:
    """4 of 12 earned 47 % of everything in that way."""
    g, outputs = twelve()
    liars = [s.index for s in g.plan.slices][:4]
    friends = {g.plan.slices[j].reducer for j in liars}
    for j in liars:
        for who, key_ in enumerate(sorted(g.made)):
            outputs[j] = outputs[j] if key_ in friends else without(outputs[j], who)
    average, _, outcome = combined(g.plan, counted(g), outputs, g.run)
    assert {k: share < 1.0 for k, share in outcome.credit.items()} == {k: k not in friends for k in g.made}
    assert min(outcome.credit.values()) == tolerant(1.0, 8 / 12) > 0.98
    assert {outcome.reduced[k] for k in friends} == {tolerant(4 / 12)} and tolerant(4 / 12) < 0.5
    assert all(share == 1.0 for k, share in outcome.reduced.items() if k not in friends)
    assert not any(average[slice(*g.plan.layout.coords(g.plan.slices[j].first_chunk))].any() for j in liars)


def test_senders_who_withhold_from_one_reducer_take_little_from_it_and_nothing_from_others() -> None:
    """Three of eight: the chunk is zero for all, which took an eighth of everybody's credit but theirs."""
    g = Senders(deltas(4, 8, 64 * 8), SMALL.model_copy(update={"max_uids": 16}))
    outputs, victim = reduced(g), g.plan.slices[3]
    withheld = [i for i, k in enumerate(sorted(g.made)) if k != victim.reducer][:3]
    for who in withheld:
        outputs[3] = without(outputs[3], who)
    outcome = combined(g.plan, counted(g), outputs, g.run)[2]
    assert sorted(outcome.credit.values()) == [tolerant(1.0, 7 / 8)] * 3 + [1.0] * 5
    assert outcome.reduced.pop(victim.reducer) == tolerant(5 / 8) > 0.9 and set(outcome.reduced.values()) == {1.0}


def test_an_inflated_chunk_is_zero() -> None:
    g = group(1)
    made = reduced(g)[0]
    values = made.chunks[0].decode()
    for factor, passes in ((1.0, True), (0.5, True), (1.03, False), (1e20, False)):
        lie = encode_chunk(values * np.float32(factor), g.plan.layout)
        average, _, outcome = combined(g.plan, counted(g), {0: replace(made, chunks=(lie, *made.chunks[1:]))}, g.run)
        assert average[:64].any() == passes and average[64:].any()
        assert outcome.credit == {key(0): 1.0} and (outcome.reduced[key(0)] == 1.0) == passes
    assert made.chunks[0].norm() <= g.works[key(0)].chunk_norms[0] * 1.0001


def test_history_is_kept_for_eight_rounds() -> None:
    g = group(carry=Carry(3.0, tuple(failed(i + 8) for i in range(8))))
    _, carry, _ = combined(g.plan, counted(g), reduced(g), g.run)
    assert carry.failed == (*(failed(i + 8) for i in range(1, 8)), ())


def test_nobody_included_keeps_the_clip_threshold() -> None:
    g = group()
    outputs = reduced(g, {})
    average, carry, outcome = combined(g.plan, counted(g), outputs, g.run)
    assert not average.any() and outcome.included == () and set(outcome.credit.values()) == {0.0}
    assert carry.tau == g.plan.tau == RUN.average.initial_tau


def test_a_clip_threshold_that_overflows_is_refused() -> None:
    g = group(run=small_run(tau_factor=1e300))
    works = {k: replace(w, chunk_norms=(1e38,) * 7) for k, w in g.works.items()}
    with pytest.raises(WireError, match="not finite"):
        next_carry(g.plan, (0,), (key(0),), works, g.run)


def test_a_discarded_round_credits_nothing() -> None:
    outcome = discarded(group().plan, "why")
    assert (outcome.applied, outcome.reason, outcome.included, outcome.counted) == (False, "why", (), ())
    assert outcome.credit == {} and outcome.num_slices == 4


def test_the_plan_knows_its_people() -> None:
    g = group()
    assert [c.public_key for c in g.plan.candidates] == [key(i) for i in range(4)]
    assert g.plan.candidate(key(2)) == g.plan.candidates[2] and g.plan.candidate(key(9)) is None
    for spec in g.plan.slices:
        assert g.plan.slice_of(spec.reducer) == spec
    assert g.plan.slice_of(key(9)) is None
    assert (g.plan.beacon, g.plan.tau, g.plan.layout.num_chunks) == (BEACON, RUN.average.initial_tau, 7)
