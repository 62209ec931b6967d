"""What a miner shows a validator of its feedback: chunks under the roots in its record, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samples import SMALL, key
from test_miner_service import MINER, PLAN, VOTER, G, Scene

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.codecs.sparse import SPARSE
from distributed_training.averaging.feedback import FeedbackFiles, carried, numbers
from distributed_training.averaging.implied import Kept
from distributed_training.averaging.store import RoundStore
from distributed_training.errors import NetworkFault, WireError
from distributed_training.protocol.merkle import Tree, digest, merkle_root
from distributed_training.protocol.rules.audit_plan import FULL_SAMPLE, SAMPLE, audit_beacon
from distributed_training.protocol.types import NO_ROOT, WorkRecord
from distributed_training.roles.auditing.buffers import NOT_LEFT, Feedback, ask_feedback, check_feedback
from distributed_training.roles.auditing.probe import Probe, Prober
from distributed_training.roles.chunks import GLANCE, LOOK, ask_chunks, drawn_chunks, drawn_feedback, end_chunks
from distributed_training.simulation import loop

LAYOUT = PLAN.layout
DECAYED = replace(SPARSE, feedback=0.9)
ASKER = replace(PLAN, uplink=DECAYED)  # the plan of who asks
COUNT = LAYOUT.num_chunks


def recorded(files: FeedbackFiles) -> WorkRecord:
    """One that begins with what a former one left out."""
    first = files.encode(G.deltas[1], LAYOUT, SPARSE, NO_ROOT)
    made = files.encode(G.deltas[0], LAYOUT, SPARSE, first.end)
    return replace(G.works[key(MINER)], feedback_start=made.start, feedback_end=made.end)


def buffer(files: FeedbackFiles, root: bytes) -> list[bytes]:
    opened = files.open(root, LAYOUT)
    return [opened.chunk(c) for c in range(COUNT)]


class Given:
    """A stream whose frames are given."""

    def __init__(self, *frames: bytes) -> None:
        self.frames, self.said = list(frames), list[bytes]()

    async def write(self, frame: bytes, timeout_s: float) -> None:
        self.said.append(frame)

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        frame = self.frames.pop(0)
        if len(frame) > max_bytes:
            raise WireError("too long")
        return frame


def read(record: WorkRecord, drawn: tuple[int, ...], frames: list[bytes]) -> tuple[dict[int, Kept], Given]:
    kept, stream = dict[int, Kept](), Given(*frames)
    given: Any = stream
    asyncio.run(ask_feedback(given, ASKER, record, drawn, kept, 1.0))
    return kept, stream


def shown(start: list[bytes] | None, end: list[bytes], drawn: tuple[int, ...]) -> list[bytes]:
    ways = [b"" if each is None else Tree([digest(c) for c in each]).show(drawn) for each in (start, end)]
    return ways + [b"" if each is None else each[c] for c in drawn for each in (start, end)]


def test_a_voter_is_shown_a_glance_or_a_look_and_others_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(PLAN.round.audit_block, tmp_path)
        ticking = asyncio.create_task(scene.clock.run())
        record = recorded(scene.store.feedback)
        scene.service.hold(replace(scene.work, record=record))
        await scene.service.attend(PLAN)
        whose = audit_beacon(bytes(32), PLAN.round.index), key(VOTER), record, SMALL, 1.0
        drawn, chunks = drawn_feedback(*whose), drawn_chunks(*whose)
        assert set(drawn) <= set(chunks) and 0 < len(drawn) <= FULL_SAMPLE
        starts, ends = (buffer(scene.store.feedback, r) for r in (record.feedback_start, record.feedback_end))
        for asked in (drawn, drawn[:1]):
            stream = await ask_chunks(scene.peers(VOTER), key(MINER, "peer"), PLAN.round.index, key(MINER), 5.0)
            for _ in range(1 + len(chunks)):
                await stream.read(1 << 16, 5.0)
            kept = dict[int, Kept]()
            await ask_feedback(stream, ASKER, record, asked, kept, 5.0)
            await end_chunks(stream, 5.0)
            assert sorted(kept) == sorted(asked)
            for c, each in kept.items():
                assert each.start is not None and each.start.tobytes() == carried(numbers(starts[c]), DECAYED).tobytes()
                assert each.end.tobytes() == ends[c]
        scene.store.feedback.keep_only({record.feedback_end})
        stream = await ask_chunks(scene.peers(VOTER), key(MINER, "peer"), PLAN.round.index, key(MINER), 5.0)
        for _ in range(1 + len(chunks)):
            await stream.read(1 << 16, 5.0)
        with pytest.raises(NetworkFault):  # what the disk has lost ends the stream and nothing else
            await ask_feedback(stream, ASKER, record, drawn, {}, 5.0)
        ticking.cancel()

    loop.run(story())


BROKEN, REFUSED = Probe({}, 0.0, unreached=True), Probe({}, 0.0)
SHOWN = Probe({}, 9.0, feedback=Feedback(1, {0: Kept(None, np.zeros(1, np.float32))}))


@pytest.mark.parametrize(
    ("feedback", "answers", "takes_s", "found"),
    [
        (True, [BROKEN, SHOWN], 1.0, SHOWN),
        (True, [BROKEN, BROKEN, SHOWN], 1.0, BROKEN),
        (True, [BROKEN, SHOWN], 30.0, BROKEN),
        (True, [REFUSED, SHOWN], 1.0, REFUSED),
        (False, [BROKEN, SHOWN], 1.0, BROKEN),
    ],
)
def test_a_line_that_breaks_costs_no_credit(feedback: bool, answers: list[Probe], takes_s: float, found: Probe) -> None:
    """What a round's credit hangs on is asked for once more, in the time that there is for it."""
    plan = replace(PLAN, uplink=SPARSE if feedback else INT8)
    left, limits = list(answers), list[float]()

    async def answer(*asked: Any) -> Probe:
        limits.append(asked[4])
        await asyncio.sleep(takes_s)
        return left.pop(0)

    async def story() -> None:
        clock: Any = SimpleNamespace(block_s=1.0, head=0, steady=True, resumed_at=0)
        prober: Any = Prober(SMALL, None, clock, key(VOTER), 20.0)  # type: ignore[arg-type]
        prober._ask = answer
        began = asyncio.get_running_loop().time()
        assert await prober.probe(plan, PLAN.candidates[0], None, b"") == found
        assert asyncio.get_running_loop().time() - began <= max(20.0, takes_s) and sum(limits[1:]) < 20.0

    loop.run(story())


def test_half_of_what_was_asked_for_is_enough() -> None:
    one = Kept(None, np.zeros(1, np.float32))
    assert not Feedback().enough and not Feedback(SAMPLE, {0: one}).enough and Feedback(2, {0: one}).enough


def test_a_vector_that_began_with_nothing_has_no_start(tmp_path: Path) -> None:
    files = RoundStore(tmp_path).feedback
    record = replace(recorded(files), feedback_start=NO_ROOT)
    end, drawn = buffer(files, record.feedback_end), (1, 3)
    kept, stream = read(record, drawn, shown(None, end, drawn))
    assert all(each.start is None for each in kept.values()) and stream.said == [LOOK]
    assert read(record, (2,), shown(None, end, (2,)))[1].said == [GLANCE]
    for bad in (shown(end, end, drawn), [b"", *shown(None, end, drawn)[1:2], end[1]]):
        with pytest.raises(WireError):
            read(record, drawn, bad)


LIES = ("another chunk", "another way", "short", "long", "no start", "an empty end", "not a number")


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_under_the_roots_is_refused(tmp_path: Path, lie: str) -> None:
    files, drawn = RoundStore(tmp_path).feedback, (0, 5)
    record = recorded(files)
    start, end = buffer(files, record.feedback_start), buffer(files, record.feedback_end)
    good = shown(start, end, drawn)
    assert sorted(read(record, drawn, good)[0]) == [0, 5]
    wrong = list(good)
    if lie == "another chunk":
        wrong[3] = end[1]
    elif lie == "another way":
        wrong[1] = good[0]
    elif lie in ("short", "long"):
        wrong[5] = good[5][:-4] if lie == "short" else good[5] + bytes(4)
    elif lie == "no start":
        wrong[0] = wrong[2] = wrong[4] = b""
    elif lie == "an empty end":
        wrong[3] = b""
    else:
        end[5] = np.full(len(end[5]) // 4, np.nan, "<f4").tobytes()
        record = replace(record, feedback_end=merkle_root([digest(c) for c in end]))
        wrong = shown(start, end, drawn)
    with pytest.raises(WireError):
        read(record, drawn, wrong)


def test_a_buffer_that_is_not_what_its_chunk_leaves_out_is_refused(tmp_path: Path) -> None:
    files = RoundStore(tmp_path).feedback
    made = files.encode(G.deltas[0], LAYOUT, SPARSE, NO_ROOT)
    plan, chunks = replace(PLAN, uplink=SPARSE), dict(enumerate(made.contribution.chunks))
    ends = [np.frombuffer(data, "<f4") for data in buffer(files, made.end)]
    kept = {c: Kept(None, end) for c, end in enumerate(ends)}
    check_feedback(plan, chunks, kept)
    check_feedback(plan, {}, kept)
    louder = ends[3].copy()
    louder[np.argmin(np.abs(louder))] = 10 * np.abs(G.deltas[0]).max()
    with pytest.raises(WireError, match=NOT_LEFT):
        check_feedback(plan, chunks, kept | {3: Kept(None, louder)})
