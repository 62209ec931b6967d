"""Training alone beside the rounds: what is to be trained comes line by line, and beside or after gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from localnet_recording import SPECS, recorded_view
from tiny_training import GPT2, manifest

from distributed_training.data.base import Page, PageFacts
from distributed_training.data.loader import heldout_sequences
from distributed_training.data.tokens import ByteTokenizer
from distributed_training.localnet.judge.baselines import (
    NICENESS,
    UNION,
    Baseline,
    Course,
    RoundJob,
    deal,
    follow_jobs,
    write_jobs,
)
from distributed_training.localnet.judge.summary import ChainFacts
from distributed_training.localnet.run.comparison import favour, round_jobs

JOBS = [RoundJob(0, 0, bytes(32), {2: 2, 3: 1}), RoundJob(2, 1, bytes([1] * 32), {2: 1, 3: 2})]


def test_rounds_are_trained_as_they_come_and_half_a_line_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    write_jobs(path, JOBS[:1], over=False)
    found: list[RoundJob] = []
    reader = threading.Thread(target=lambda: found.extend(follow_jobs(path, os.getppid())))
    reader.start()
    write_jobs(tmp_path / "rest", JOBS[1:], over=True)
    rest = (tmp_path / "rest").read_text()
    for part in (rest[:20], rest[20:]):
        time.sleep(0.3)
        assert reader.is_alive()
        with path.open("a") as file:
            file.write(part)
    reader.join(5)
    assert found == JOBS


def test_nobody_waits_for_rounds_of_a_demo_that_is_gone(tmp_path: Path) -> None:
    write_jobs(tmp_path / "jobs", JOBS, over=False)
    assert list(follow_jobs(tmp_path / "jobs", parent=-1)) == []


class Pages:
    num_pages, sha256 = 8, "00"

    def fetch(self, index: int) -> Page:
        return Page(index, (f"page {index} " * 40,), bytes(32))

    def facts(self, index: int) -> PageFacts:
        return PageFacts(None, 0, 0)

    def heldout(self) -> tuple[str, ...]:
        return ("held out " * 200,)


def test_side_by_side_or_one_after_the_other_gives_the_same_numbers() -> None:
    run = manifest(GPT2 | {"vocab_size": 257})
    pages, tokenizer = Pages(), ByteTokenizer()
    course = Course(run, pages, tokenizer, heldout_sequences(pages, tokenizer, run.data.sequence_length, 4))
    told: dict[str, list[dict[str, Any]]] = {}

    def baseline(name: str) -> Baseline:
        return Baseline(course, name, told.setdefault(name, []).append)

    beside = [baseline(name) for name in ("2", "3", UNION)]
    for job in JOBS:
        for one in beside:
            one.train(job)
    for one in beside:
        one.end()
    first = {name: events[-1] for name, events in told.items()}
    assert {name: end["done"] for name, end in first.items()} == {"2": 3, "3": 3, UNION: 6}
    assert all(set(end["losses"]) == {"-1", "0", "2"} for end in first.values())
    told.clear()
    for name in ("2", "3", UNION):
        alone = baseline(name)
        for job in JOBS:
            alone.train(job)
        alone.end()
    assert {name: events[-1] for name, events in told.items()} == first


def test_one_worker_has_all_tokens_the_other_everybody_alone() -> None:
    assert deal(["2", "3", UNION], JOBS, 2) == [[UNION], ["2", "3"]]


def test_what_is_to_be_trained_is_what_was_done_and_of_rounds_that_the_chain_shows() -> None:
    view = recorded_view()
    jobs = round_jobs(view, ChainFacts({0: bytes(32), 1: bytes(32)}, {}))
    miners = {s.uid: s.steps for s in SPECS if s.role.name == "MINER"}
    assert [(j.index, j.applied, j.steps) for j in jobs] == [(0, 0, miners), (1, 1, miners)]
    assert json.dumps(jobs[0].steps)


def test_work_that_no_average_holds_is_not_done_alone_either() -> None:
    view = recorded_view()
    for node in view.nodes.values():
        node.rounds[0] = {**node.rounds[0], "applied": False, "included": []}
        node.rounds[1] = {**node.rounds[1], "included": [3, 5, 6]}
    (job,) = round_jobs(view, ChainFacts({0: bytes(32), 1: bytes(32)}, {}))
    assert (job.index, job.applied, sorted(job.steps)) == (1, 0, [3, 5, 6])


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel does not share by session")
def test_what_stands_back_while_nodes_run_comes_forward_again() -> None:
    sleepers = [subprocess.Popen(["sleep", "20"], start_new_session=True) for _ in range(2)]
    for niceness in (NICENESS, 0):
        for sleeper in sleepers:
            favour(sleeper.pid, niceness)
        for sleeper in sleepers:
            assert Path(f"/proc/{sleeper.pid}/autogroup").read_text().endswith(f" nice {niceness}\n")
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()
    favour(sleepers[0].pid, 0)  # one that has ended is left alone
