"""Overlap: training that goes on from a miner's own end, is shifted once, and is replayed bit for bit."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import BEACON, key, neuron, roster
from test_auditor import CONFIG, UID, Kept, Pages, tiny
from tiny_training import GPT2, batches, loop, manifest

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.contribution import Contribution, can_have_begun, encode_contribution
from distributed_training.averaging.feedback import Encoded
from distributed_training.averaging.plan import RoundPlan, layout_of, make_plan
from distributed_training.data.tokenised import TokenisedPages
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.manifest import RunManifest, check
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.audit_plan import Depth
from distributed_training.protocol.rules.clock import averaged_at, over, round_at
from distributed_training.protocol.types import NO_ROOT, Carry, StepRecord, WorkRecord
from distributed_training.protocol.wire import encode_log, encode_step
from distributed_training.roles.auditing.audit import Auditor, Given, Job
from distributed_training.roles.auditing.logs import PushedLog
from distributed_training.roles.auditing.starts import Former
from distributed_training.roles.began import BeganReader, Origin
from distributed_training.roles.mining.onward import Onward, own_end
from distributed_training.roles.mining.record import work_record
from distributed_training.roles.mining.work import Trainer, WorkResult, WorkTask
from distributed_training.roles.parts import TrainingThread
from distributed_training.roles.validator import Validator
from distributed_training.simulation import loop as simulated
from distributed_training.training.flat import Flat, to_flat
from distributed_training.training.inner import InnerLoop, InnerResult
from distributed_training.training.model import build_model
from distributed_training.training.optimizers import KINDS
from distributed_training.training.outer import RunState, initial_state, outer_step

START = to_flat(build_model(GPT2, 7))
STEPS = 8
OVERLAP = {"commit": 20, "length": 20, "output": 28, "map": 34, "transfer": 2}
OVERLAP |= {"roster_lead": 4, "commit_margin": 3, "finality": 2}
BASE = manifest(GPT2)


# --- offsets ---------------------------------------------------------------------------------------

blocks = st.integers(1, 60)


def with_timing(**offsets: Any) -> RunManifest:
    return BASE.model_copy(update={"timing": BASE.timing.model_copy(update=offsets | {"overlap": True})})


@st.composite
def offsets(draw: Any) -> dict[str, int]:
    """About the ones that are taken: some are not."""
    finality, margin = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    commit = margin + draw(blocks)
    output = commit + finality + margin + draw(st.integers(1, 9))
    map_ = output + finality + draw(st.integers(1, 9))
    return {
        "finality": finality, "commit_margin": margin, "reduce_margin": margin, "transfer": 1, "commit": commit,
        "output": output, "map": map_, "roster_lead": finality + draw(st.integers(0, 9)), "first_block": 99,
        "length": max(commit - 2, 1, map_ + finality - commit + margin + draw(st.integers(-2, 30))),
    }  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(offsets(), st.integers(0, 5))
def test_offsets_that_are_taken_keep_the_rounds_apart(offsets: dict[str, int], index: int) -> None:
    run = with_timing(**offsets)
    assume(not [problem for problem in check(run) if problem.startswith("timing")])
    timing, now, then = run.timing, run.round(index), run.round(index + 1)
    settled = now.map_block + timing.finality
    assert now.commit_block <= then.start_block, "a hash of one round is never read as the other's"
    assert settled < then.train_end_block, "the state is there before what it has to be the start of is committed"
    assert now.output_block < then.train_end_block and settled < then.commit_block, "one commitment a hotkey"
    assert now.audit_block + timing.finality <= then.commit_block
    assert over(timing, index) >= max(settled, now.end_block) and over(timing, index) <= over(timing, index + 1)
    assert averaged_at(timing, now.commit_block) == index and averaged_at(timing, settled) == index
    assert round_at(timing, now.start_block) == index


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"commit": 21}, "commit <= length"),
        ({"map": 35}, "map + finality < length + commit - commit_margin"),
        ({"roster_lead": 11}, "the audit beacon must be final before the next round is averaged"),
    ],
)
def test_offsets_that_cannot_overlap_are_refused_by_name(wrong: dict[str, int], said: str) -> None:
    assert [p for p in check(with_timing(**OVERLAP)) if p.startswith("timing")] == []
    assert any(said in problem for problem in check(with_timing(**(OVERLAP | wrong))))


# --- the shift ---------------------------------------------------------------------------------------


def run(kind: str, start: Flat, steps: int, shift: Callable[[int], Flat | None] = lambda step: None) -> InnerResult:
    return loop(GPT2, optimizer=kind).run(
        start, batches(1), applied_rounds=3, sketch_seed=b"seed", max_steps=steps, should_stop=lambda: False,
        shift=shift,
    )  # fmt: skip


def at(step: int, vector: Flat) -> Callable[[int], Flat | None]:
    return lambda now: vector if now == step else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_moves_the_parameters_by_exactly_that_and_nothing_before_it(kind: str) -> None:
    vector = np.random.default_rng(3).normal(0, 1e-2, len(START)).astype(np.float32)
    plain, zero = run(kind, START, 5), run(kind, START, 5, at(2, np.zeros_like(START)))
    assert zero.end.tobytes() == plain.end.tobytes() and zero.shifted_at == 2 and plain.shifted_at is None
    moved, again = run(kind, START, 5, at(2, vector)), run(kind, START, 5, at(2, vector))
    assert moved.end.tobytes() == again.end.tobytes() and moved.steps == again.steps
    assert moved.steps[:2] == plain.steps[:2] and moved.steps[2] != plain.steps[2]
    first, elsewhere = run(kind, START, 5, at(0, vector)), run(kind, START + vector, 5)
    assert first.end.tobytes() == elsewhere.end.tobytes(), "numpy's sum has the device's bits"
    assert run(kind, START, 5, at(5, vector)).end.tobytes() == plain.end.tobytes(), "nothing follows the last step"


def test_who_goes_on_is_shifted_once_and_from_what_it_committed() -> None:
    layout, delta = tiny_layout(), np.random.default_rng(5).normal(0, 1e-3, len(START)).astype(np.float32)
    contribution = encode_contribution(delta, layout, INT8)
    end = own_end(START, enumerate(contribution.chunks), layout, INT8)
    decoded = np.concatenate([INT8.parse(c, layout, i).decode() for i, c in enumerate(contribution.chunks)])
    assert end.tobytes() == (START - decoded).tobytes() and not np.array_equal(end, START - delta)
    state = initial_state((START - np.float32(0.5) * decoded).astype(np.float32), BASE.average)
    onward = Onward(end.copy(), contribution.wire_root, 4)
    assert onward.applied == 5 and onward.shift(0) is None
    onward.settle(state)
    moved = onward.shift(1)
    assert moved is not None and moved.tobytes() == (state.params - end).tobytes()
    assert onward.shift(2) is None and onward.shifted


def test_a_discarded_round_takes_its_own_progress_back() -> None:
    layout, delta = tiny_layout(), np.random.default_rng(6).normal(0, 1e-3, len(START)).astype(np.float32)
    contribution = encode_contribution(delta, layout, INT8)
    onward = Onward(own_end(START, enumerate(contribution.chunks), layout, INT8), contribution.wire_root, 0)
    onward.settle(initial_state(START, BASE.average))
    end, back = onward.end.copy(), onward.shift(0)
    assert back is not None and np.abs(end + back - START).max() < 1e-7


def tiny_layout() -> Any:
    return layout_of(BASE, len(START))


# --- a round that goes on, and its audit ----------------------------------------------------------------


class TwoRounds:
    """A miner's honest round 0, and its round 1 from its own end, shifted before step `shift_at`; an auditor."""

    def __init__(self, shift_at: int | None, *, discarded: bool = False) -> None:
        base = tiny(full_share=0.5)
        self.run = base.model_copy(update={"timing": base.timing.model_copy(update={"overlap": True})})
        self.loop, self.shift_at = InnerLoop(build_model(CONFIG, 7), self.run), shift_at
        self.state0 = initial_state(to_flat(build_model(CONFIG, 7)), self.run.average)
        self.plans = [self.plan(index) for index in range(2)]
        made = self.trained(0, self.state0)
        self.contribution = encode_contribution(made.delta, self.plans[0].layout, INT8)
        chunks = enumerate(self.contribution.chunks)
        self.onward = Onward(own_end(self.state0.params, chunks, self.plans[0].layout, INT8), self.root, 0)
        self.state1 = self.state0 if discarded else self.next_state()
        self.made = self.trained(1, self.state0, self.onward)
        assert len(self.made.steps) == STEPS and self.made.shifted_at == shift_at
        self.kept = Kept()
        tokenizer = ByteTokenizer()
        metrics = Metrics([self.kept], role="validator", uid=9, threads=False)
        source = TokenisedPages(Pages(self.run), tokenizer)
        self.auditor = Auditor(self.run, TrainingThread(), self.loop, source, tokenizer, 5.0, metrics)

    @property
    def root(self) -> bytes:
        return self.contribution.wire_root

    def plan(self, index: int) -> RoundPlan:
        round_ = self.run.round(index)
        one = neuron(UID)
        assert one.commitment is not None
        said = replace(one.commitment, first_round=index, run=self.run.tag)
        one = replace(one, commitment=said, commitment_block=round_.commit_block)
        return make_plan(
            self.run, round_, roster=roster(one), at_commit=roster(one), beacon=BEACON,
            state_root=bytes(32), carry=Carry(10.0, ()), num_coords=len(self.state0.params),
        )  # fmt: skip

    def next_state(self) -> RunState:
        state, layout = self.state0, self.plans[0].layout
        averages = (INT8.parse(c, layout, i).decode() * np.float32(0.6) for i, c in enumerate(self.contribution.chunks))
        fresh = RunState(state.params.copy(), state.momentum.copy(), 0, state.carry)
        return outer_step(fresh, averages, state.carry, self.run.outer)[0]

    def trained(self, index: int, state: RunState, onward: Onward | None = None) -> WorkResult:
        def on_step(record: StepRecord, seconds: float) -> None:
            if onward is not None and record.step + 1 == self.shift_at:
                onward.settle(self.state1)

        if onward is not None and self.shift_at == 0:
            onward.settle(self.state1)
        task = WorkTask(index, UID, BEACON, state, STEPS, lambda: False, on_step, onward)
        return Trainer(self.loop, Pages(self.run), ByteTokenizer(), self.run).work(task)

    def record(self, **lies: Any) -> WorkRecord:
        parts: Any = type("P", (), {"manifest": self.run, "signer": type("S", (), {"public_key": key(UID)})})
        mine = Encoded(self.vector(), NO_ROOT, NO_ROOT, None)
        return replace(work_record(parts, UID, 1, bytes(32), self.made, mine, self.root), **lies)

    def job(self, depth: int, *, full: bool = False, **lies: Any) -> Job:
        record, made = self.record(**lies), self.made
        chunks = dict(enumerate(self.vector().chunks)) if full else {}
        pushed = PushedLog(b"", 1, encode_log(made.page_digests, made.steps))
        former = Former(self.plans[0], self.state0.params, 0, {})
        origin = Origin(self.former_record(), dict(enumerate(self.contribution.chunks)))
        start = self.state1.params, self.state1.applied
        more = Given(chunks), former, origin
        return Job(self.plans[1], start, Depth(depth, full), record, pushed, lambda: False, *more)

    def vector(self) -> Contribution:
        return encode_contribution(self.made.delta, self.plans[1].layout, INT8)

    def former_record(self) -> WorkRecord:
        return self.record(round=0, wire_root=self.root, began_at=NO_ROOT, shift_step=0)

    def ask(self, job: Job) -> AuditResult | None:
        return asyncio.run(self.auditor.audit(job))


@functools.cache
def rounds(shift_at: int | None, *, discarded: bool = False) -> TwoRounds:
    return TwoRounds(shift_at, discarded=discarded)


@pytest.fixture
def shifted() -> TwoRounds:
    return rounds(3)


@pytest.mark.parametrize("shift_at", [0, 3, STEPS - 1, None])
@pytest.mark.parametrize("depth", [1, 3, 4, STEPS])
def test_the_replay_is_the_miners_own_log_wherever_it_was_shifted(shift_at: int | None, depth: int) -> None:
    two = rounds(shift_at)
    assert two.record().shift_step == (STEPS if shift_at is None else shift_at)
    result = two.ask(two.job(depth, full=depth == STEPS))
    assert result is not None and result.verdict is Verdict.PASS
    assert depth == STEPS or result.error == 0.0, "of a full replay it is the cosine"
    made = two.made.delta
    assert 0 < np.linalg.norm(made) < 1.0 and np.isfinite(made).all()


def test_a_round_after_a_discarded_one_is_replayed_too() -> None:
    two = rounds(4, discarded=True)
    result = two.ask(two.job(STEPS, full=True))
    assert result is not None and result.verdict is Verdict.PASS


def test_a_wrong_shift_step_is_found_at_the_first_step_that_it_moves(shifted: TwoRounds) -> None:
    for lie, step in ((1, 1), (5, 3), (STEPS, 3)):
        result = shifted.ask(shifted.job(STEPS, shift_step=lie))
        assert result is not None and result.verdict is Verdict.FAIL and result.failed_step == step, lie


def test_who_says_that_it_began_at_the_state_and_did_not_fails_at_once(shifted: TwoRounds) -> None:
    job = replace(shifted.job(1, began_at=NO_ROOT, shift_step=0), origin=None)
    result = shifted.ask(job)
    assert result is not None and (result.verdict, result.failed_step) == (Verdict.FAIL, 0)


def test_a_vector_that_is_not_its_own_of_the_round_before_fails_without_a_replay(shifted: TwoRounds) -> None:
    other = shifted.job(0, began_at=digest(b"another"))
    result = shifted.ask(other)
    assert result is not None and result.reason == "training began at another vector than its own of the round before"
    job = shifted.job(0)
    assert job.former is not None
    nobody = replace(job.former, plan=replace(job.former.plan, candidates=()))
    result = shifted.ask(replace(job, former=nobody))
    assert result is not None and "committed nothing" in result.reason and result.verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
@pytest.mark.parametrize("full", [False, True])
def test_nobody_begins_where_no_replay_comes_to_anything(shifted: TwoRounds, size: float, full: bool) -> None:
    """Its vector of the round before is its own choice. At 1e30 no loss is finite, which would be no observation; at
    100 rounding alone decides what a step gives, which would be held against nobody."""
    noise = np.random.default_rng(1).standard_normal(len(START)).astype(np.float32) * np.float32(size)
    far = encode_contribution(noise, shifted.plans[0].layout, INT8)
    record = replace(shifted.former_record(), wire_root=far.wire_root)
    job = shifted.job(STEPS if full else 1, full=full, began_at=far.wire_root, shift_step=STEPS)
    shifted.kept.events.clear()
    result = shifted.ask(replace(job, origin=Origin(record, dict(enumerate(far.chunks)))))
    assert result is not None and result.verdict is Verdict.FAIL and not shifted.kept.events
    assert result.reason == "training began at a vector that no training leads to"
    assert shifted.ask(shifted.job(STEPS, full=True)) is not None, "and the next miner is measured as before"


def test_chunks_that_are_not_all_there_and_a_state_that_we_do_not_hold_are_no_observation(shifted: TwoRounds) -> None:
    job = shifted.job(2)
    assert job.origin is not None
    part = {c: data for c, data in job.origin.chunks.items() if c}
    assert shifted.ask(replace(job, origin=replace(job.origin, chunks=part))) is None
    shifted.kept.events.clear()
    assert shifted.ask(replace(job, former=None, origin=None)) is None
    assert not shifted.kept.events, "told once, for all of them (`Looker`)"


@pytest.mark.parametrize(("takes_s", "chunks"), [(1.0, {0: b"a", 1: b"b"}), (30.0, {0: b"a"})])
def test_a_line_that_breaks_while_it_is_given_costs_no_credit(takes_s: float, chunks: dict[int, bytes]) -> None:
    """Only the miner has all of it: it is asked once more, in the time that there is for it, and no further."""
    record = rounds(3).former_record()
    answers = [(Origin(record, {0: b"a"}), True), (Origin(record, {1: b"b"}), True), (Origin(None, {}), False)]

    async def answer(*asked: Any) -> tuple[Origin, bool]:
        await asyncio.sleep(takes_s)
        return answers.pop(0)

    async def story() -> None:
        reader: Any = BeganReader(BASE, None, lambda *asked: True, 20.0)  # type: ignore[arg-type]
        reader._ask = answer
        assert await reader.ask(rounds(3).plans[0], None, None) == Origin(record, chunks)

    simulated.run(story())


def test_a_record_says_what_can_have_been() -> None:
    two = rounds(3)
    for record, overlap, ok in (
        (two.record(), True, True),
        (two.record(), False, False),
        (two.record(shift_step=STEPS), True, True),
        (two.record(shift_step=STEPS + 1), True, False),
        (two.record(began_at=NO_ROOT), True, False),
        (two.record(began_at=NO_ROOT, shift_step=0), True, True),
        (two.record(began_at=NO_ROOT, shift_step=0), False, True),
        (two.record(round=0), True, False),
    ):
        assert can_have_begun(record, overlap=overlap) == ok, (record.round, record.shift_step, overlap)


def test_log_roots_of_a_shifted_round_are_those_of_its_steps(shifted: TwoRounds) -> None:
    assert shifted.record().log_root == merkle_root([digest(encode_step(s)) for s in shifted.made.steps])


def test_a_validator_takes_the_round_just_before_and_no_older_one_for_the_former(shifted: TwoRounds) -> None:
    first, second = shifted.plans
    third = replace(second, round=shifted.run.round(3))
    me: Any = SimpleNamespace(_former=None, _p=SimpleNamespace(manifest=shifted.run))
    params = shifted.state0.params
    assert Validator._then(me, first, params, 0, {}) is None
    former = Validator._then(me, second, params, 1, {})
    assert former is not None and (former.plan, former.applied) == (first, 0)
    assert Validator._then(me, third, params, 2, {}) is None, "a round lies between them"
