"""The look at one miner's round on real training: what is read for it, what is the miner's fault, what is ours."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import BEACON, group, key, neuron, roster
from tiny_training import GPT2, manifest

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.contribution import encode_contribution
from distributed_training.averaging.plan import RoundPlan, make_plan
from distributed_training.data.base import Page, PageFacts
from distributed_training.data.pages import page_digest
from distributed_training.data.tokenised import TokenisedPages
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.errors import DataUnavailable
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.rules.assignment import page_index
from distributed_training.protocol.rules.audit_plan import Depth
from distributed_training.protocol.types import NO_ROOT, Carry, WorkRecord
from distributed_training.protocol.wire import encode_log, encode_step
from distributed_training.roles.auditing.audit import TOO_LONG, Auditor, Given, Job
from distributed_training.roles.auditing.logs import KeptLogs, PushedLog
from distributed_training.roles.auditing.looking import lacks
from distributed_training.roles.mining.work import Trainer, WorkResult, WorkTask, round_permutation
from distributed_training.roles.parts import TrainingThread
from distributed_training.training.flat import Flat, to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import build_model
from distributed_training.training.outer import initial_state

UID, STEPS, PAGES_EACH = 1, 12, 8
CONFIG = GPT2 | {"vocab_size": 257, "n_layer": 1, "n_embd": 8}


def tiny(**audit: Any) -> RunManifest:
    base = manifest(CONFIG, batch_size=2)
    data = base.data.model_copy(update={"num_pages": base.max_uids * PAGES_EACH})
    return base.model_copy(update={"data": data, "audit": base.audit.model_copy(update=audit)})


class Pages:
    """Each holds the tokens of two steps. `broken`: what reading a page raises; `unsaid`: nobody knows the digests."""

    sha256 = "00"

    def __init__(self, run: RunManifest) -> None:
        self.num_pages, self._size = run.data.num_pages, 2 * run.tokens_per_step - 1
        self.fetched: list[int] = []
        self.broken: dict[int, Exception] = {}
        self.unsaid = False

    def documents(self, index: int) -> tuple[str, ...]:
        return ((f"page {index} has its own text, " * 20)[: self._size],)

    def fetch(self, index: int) -> Page:
        self.fetched.append(index)
        if index in self.broken:
            raise self.broken[index]
        return Page(index, self.documents(index), page_digest(self.documents(index)))

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0) if self.unsaid else PageFacts(page_digest(self.documents(index)), self._size, 1)

    def heldout(self) -> tuple[str, ...]:
        return ()


class Kept:
    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    def write(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None: ...


class Scene:
    """One miner's honest round, and an auditor that has read no page yet."""

    def __init__(self, **audit: Any) -> None:
        self.run = tiny(**audit)
        self.start: Flat = to_flat(build_model(CONFIG, 7))
        self.pages, self.kept = Pages(self.run), Kept()
        self.plan: RoundPlan = make_plan(
            self.run, self.run.round(0), roster=roster(neuron(UID)), at_commit=roster(neuron(UID)), beacon=BEACON,
            state_root=bytes(32), carry=Carry(10.0, ()), num_coords=len(self.start),
        )  # fmt: skip
        tokenizer, loop = ByteTokenizer(), InnerLoop(build_model(CONFIG, 7), self.run)
        state = initial_state(self.start.copy(), self.run.average)
        task = WorkTask(0, UID, BEACON, state, STEPS, lambda: False, lambda record, seconds: None)
        self.made: WorkResult = Trainer(loop, Pages(self.run), tokenizer, self.run).work(task)
        assert len(self.made.steps) == STEPS and len(self.made.page_digests) == STEPS // 2
        self._loop = loop
        self.fresh()

    def fresh(self) -> None:
        """An auditor that has read no page yet."""
        tokenizer, metrics = ByteTokenizer(), Metrics([self.kept], role="validator", uid=9, threads=False)
        self.pages.fetched.clear()
        source = TokenisedPages(self.pages, tokenizer)
        self.auditor = Auditor(self.run, TrainingThread(), self._loop, source, tokenizer, 5.0, metrics)

    def job(self, depth: int, *, full: bool = False, pages: Any = None, log: Any = None, **record: Any) -> Job:
        """Of the honest round, or of lies that hash as they should. `record`: fields that do not."""
        steps, named = self.made.steps, self.made.page_digests if pages is None else pages
        claim = WorkRecord(
            manifest=self.run.digest, round=0, uid=UID, public_key=key(UID), state_root=bytes(32), steps=len(steps),
            tokens=STEPS * self.run.tokens_per_step, pages_root=merkle_root(named),
            log_root=merkle_root([digest(encode_step(s)) for s in steps]), wire_root=bytes(32), codec=INT8.id,
            feedback_start=NO_ROOT, feedback_end=NO_ROOT, began_at=NO_ROOT, shift_step=0,
            chunk_norms=(),
        )  # fmt: skip
        data = encode_log(named, steps) if log is None else log(encode_log(named, steps))
        pushed = PushedLog(b"", 1, data)
        claim = dataclasses.replace(claim, **record)
        return Job(self.plan, (self.start, 0), Depth(depth, full), claim, pushed, lambda: False, Given({}))

    def ask(self, job: Job) -> AuditResult | None:
        return asyncio.run(self.auditor.audit(job))

    def assigned(self, number: int, uid: int = UID) -> int:
        index = page_index(round_permutation(self.run, 0, BEACON), self.run.max_uids, uid, number)
        assert index is not None
        return index

    def faults(self) -> list[str]:
        return [event["detail"] for event in self.kept.events if event["event"] == "fault"]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize(("depth", "read"), [(0, 0), (1, 1), (3, 2), (4, 2), (5, 3), (STEPS, STEPS // 2)])
def test_only_the_pages_that_a_replay_comes_to_are_read(scene: Scene, depth: int, read: int) -> None:
    scene.fresh()
    result = scene.ask(scene.job(depth))
    assert scene.pages.fetched == [scene.assigned(i) for i in range(read)], "each once, in order"
    assert result is None if depth == 0 else result is not None and result.verdict is Verdict.PASS


def other_page(scene: Scene) -> Job:
    named = list(scene.made.page_digests)
    named[-1] = page_digest(scene.pages.documents(scene.assigned(5, uid=2)))
    return scene.job(1, pages=tuple(named))


def too_many_pages(scene: Scene) -> Job:
    named = [page_digest(scene.pages.documents(scene.assigned(i))) for i in range(PAGES_EACH)]
    return scene.job(1, pages=(*named, bytes(32)), log=None)


def no_number(data: bytes) -> bytes:
    at = 4 + 32 * (STEPS // 2) + 4 + 12  # the first loss
    return data[:at] + struct.pack("<e", np.nan) + data[at + 2 :]


LIES: dict[str, tuple[Callable[[Scene], Job], str]] = {
    "bytes that are no log": (lambda s: s.job(1, log=lambda data: b"log"), "step log: 4 bytes expected, 3 left"),
    "too many leaves": (
        lambda s: s.job(1, log=lambda data: struct.pack("<I", 9) + data[4:]), "step log: 9 pages, at most 8 expected",
    ),
    "a number that is none": (lambda s: s.job(1, log=no_number), "step log: non-finite number"),
    "another log root": (lambda s: s.job(1, log_root=bytes(32)), "log does not hash into the log root"),
    "another page root": (lambda s: s.job(1, pages_root=bytes(32)), "page digests do not hash into the page root"),
    "more steps than logged": (lambda s: s.job(1, steps=STEPS + 1), f"log has {STEPS} steps, {STEPS + 1} are claimed"),
    "a page of somebody else": (other_page, "pages are not the assigned ones"),
    "more pages than it has": (too_many_pages, "step log: 9 pages, at most 8 expected"),
    "no page": (lambda s: s.job(1, pages=()), TOO_LONG),
    "less pages than its steps take": (lambda s: s.job(1, pages=s.made.page_digests[:-1]), TOO_LONG),
    "a uid outside the manifest": (lambda s: s.job(1, uid=4), "uid 4 has no pages: the run is for uids below 4"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_is_that_miners_fail_and_reads_no_page(scene: Scene, lie: str) -> None:
    scene.fresh()
    job, said = LIES[lie]
    result = scene.ask(job(scene))
    assert result is not None and (result.verdict, result.reason) == (Verdict.FAIL, said)
    assert scene.pages.fetched == [] and scene.faults() == []


def test_more_pages_than_its_steps_take_is_found_by_who_replays_them_all(scene: Scene) -> None:
    scene.fresh()
    more = (*scene.made.page_digests, page_digest(scene.pages.documents(scene.assigned(STEPS // 2))))
    partly, whole = (scene.ask(scene.job(depth, pages=more)) for depth in (STEPS - 1, STEPS))
    assert partly is not None and partly.verdict is Verdict.PASS
    assert whole is not None and (whole.verdict, whole.reason) == (Verdict.FAIL, "pages are not the assigned ones")


def test_a_page_whose_digest_nobody_has_said_is_compared_when_a_replay_comes_to_it(scene: Scene) -> None:
    scene.fresh()
    scene.pages.unsaid = True
    try:
        job = other_page(scene)
        verdicts = [scene.ask(dataclasses.replace(job, depth=Depth(depth, False))) for depth in (STEPS - 2, STEPS - 1)]
    finally:
        scene.pages.unsaid = False
    assert [result is not None and result.verdict for result in verdicts] == [Verdict.PASS, Verdict.FAIL]


def test_our_own_trouble_is_no_observation_and_is_told(scene: Scene, tmp_path: Path) -> None:
    gone = KeptLogs(tmp_path).put(0, key(UID), scene.job(1).pushed)
    (tmp_path / "000000" / key(UID).hex()).unlink()
    troubles: list[tuple[Exception | None, str]] = [
        (DataUnavailable("cannot read it"), "cannot read it"),
        (MemoryError(), "MemoryError"),
        (KeyError("an error of ours"), "KeyError: 'an error of ours'"),
        (None, "No such file"),
    ]
    for error, said in troubles:
        scene.fresh()
        scene.kept.events.clear()
        job = scene.job(1)
        if error is not None:
            scene.pages.broken = {scene.assigned(0): error}
        try:
            assert scene.ask(job if error is not None else dataclasses.replace(job, pushed=gone)) is None
        finally:
            scene.pages.broken = {}
        assert [said in fault and f"uid {UID} is not audited" in fault for fault in scene.faults()] == [True]
        scene.fresh()
        result = scene.ask(job)
        assert result is not None and result.verdict is Verdict.PASS, "the next one is audited"


def test_what_is_too_late_is_no_observation_and_nothing_is_said(scene: Scene) -> None:
    scene.fresh()
    scene.kept.events.clear()
    assert scene.ask(dataclasses.replace(scene.job(STEPS), late=lambda: True)) is None
    assert scene.faults() == []


def committed(scene: Scene, name: str) -> Given:
    """A vector's chunks: the honest one, or what somebody sent in its place."""
    delta, rng = scene.made.delta, np.random.default_rng(4)
    norm = float(np.linalg.norm(delta))
    noise = rng.standard_normal(len(delta)).astype(np.float32)
    vectors = {
        "honest": delta, "louder": 3 * delta, "turned round": -delta, "nothing": np.zeros_like(delta),
        "noise": noise * np.float32(norm / np.linalg.norm(noise)),
    }  # fmt: skip
    return Given(dict(enumerate(encode_contribution(vectors[name], scene.plan.layout, INT8).chunks)))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", ["honest", "louder", "turned round", "nothing", "noise"])
def test_a_vector_that_goes_elsewhere_is_seen_by_the_first_steps(scene: Scene, name: str, depth: int) -> None:
    result = scene.ask(dataclasses.replace(scene.job(depth), given=committed(scene, name)))
    assert result is not None
    if name in ("honest", "louder"):
        assert result.verdict is Verdict.PASS
    else:
        assert (result.verdict, result.reason, result.failed_step) == (Verdict.FAIL, "direction", None)
        assert result.error is not None and result.bad is not None and result.error < result.bad < 0.1


def test_the_noise_floor_is_measured_once_a_round_and_told(scene: Scene) -> None:
    scene.fresh()
    found = [scene.ask(scene.job(depth)) for depth in (1, 2)]
    floors = {result.noise for result in found if result is not None}
    assert len(floors) == 1 and 0.0005 < floors.pop() < 0.02, "bf16 beside fp32"


def test_a_log_that_was_pushed_outlives_the_process_and_goes_after_two_rounds(tmp_path: Path) -> None:
    kept, pushed = KeptLogs(tmp_path), PushedLog(b"record", 17, b"log" * 100)
    for index in (3, 4):
        there = kept.put(index, key(UID), pushed)
        assert isinstance(there.log, Path) and (there.read(), there.signed_record) == (pushed.log, b"record")
    (tmp_path / "000004" / "not a key").write_bytes(b"x")
    again = KeptLogs(tmp_path)
    assert {k: (p.read(), p.signed_record, p.block) for k, p in again.load(4).items()} == {
        key(UID): (pushed.log, b"record", 17)
    }
    again.drop(4)
    assert set(again.load(3)) == {key(UID)} and again.load(7) == {}
    again.drop(5)
    assert again.load(3) == {} and again.load(4)
    (tmp_path / "blocked").write_bytes(b"")
    assert KeptLogs(tmp_path / "blocked").put(3, key(UID), pushed) is pushed, "a disk that takes nothing"


def test_a_vector_that_we_did_not_come_to_the_end_of_asking_for_is_not_held_against_its_miner() -> None:
    plan = group().plan
    assert not lacks(plan, Depth(1, True), None, None), "no time, or trouble of our own"
    full, whole = Depth(1, True), Given(dict.fromkeys(range(plan.layout.num_chunks), b""))
    assert lacks(plan, full, Given({}), None) and not lacks(plan, full, whole, None)
    assert not lacks(plan, Depth(1, False), Given({}), None), "reducers give the few chunks that there are"
