"""The outside watcher: verdicts from what it sees and its own clock, never from what a node says of the time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from localnet_recording import SPECS, recorded, recorded_manifest

from distributed_training.localnet.judge.fault_summary import watch_rows
from distributed_training.localnet.judge.watcher import (
    GRACE_S,
    RESULT,
    Observer,
    RoundTimes,
    Watcher,
    lock_holder_lives,
)
from distributed_training.localnet.layout import RunPaths

GENESIS = 1_000_000.0
TIMES = RoundTimes(recorded_manifest().timing, GENESIS, 1.0)  # first block 12, 54 blocks a round


def observe(steps: list[tuple[float, dict[str, bool], list[tuple[str, int]]]], began: float = GENESIS) -> Observer:
    """Looks at (seconds after genesis, who lives, what was new)."""
    observer = Observer(TIMES, began)
    for at, lives, fresh in steps:
        observer.look(GENESIS + at, lives, fresh)
    return observer


def test_rounds_follow_from_the_genesis_time_alone() -> None:
    assert (TIMES.start(0), TIMES.start(2), TIMES.due(0)) == (GENESIS + 12, GENESIS + 120, GENESIS + 66 + GRACE_S)
    assert [TIMES.round_at(GENESIS + at) for at in (0, 11, 12, 65, 66)] == [-1, -1, 0, 0, 1]


def test_settled_by_the_end_and_ten_seconds_and_late_after_that() -> None:
    up = {"a": True, "b": True, "c": True}
    observer = observe([(0, up, []), (60, up, [("a", 0)]), (75.9, up, [("b", 0)]), (76.1, up, [("c", 0)])])
    assert [observer.verdict(name, 0) for name in "abc"] == ["settled", "settled", "late"]
    assert observer.rounds()[0]["after_end_s"] == {"a": -6.0, "b": 9.9, "c": 10.1}


def test_nothing_is_said_before_the_time_is_over() -> None:
    observer = observe([(0, {"a": True}, []), (75, {"a": True}, [])])
    assert observer.verdict("a", 0) is None
    observer.look(GENESIS + 77, {"a": True}, [])
    assert observer.verdict("a", 0) == "late"


def test_a_node_that_did_not_live_all_the_time_is_dead_unless_it_settled_nevertheless() -> None:
    steps = [(0, {"a": True, "b": True}, []), (30, {"a": False, "b": False}, []), (40, {"a": True, "b": True}, [])]
    observer = observe([*steps, (70, {"a": True, "b": True}, [("a", 0)]), (200, {"a": True, "b": True}, [])])
    assert (observer.verdict("a", 0), observer.verdict("b", 0)) == ("settled", "dead")
    assert observer.verdict("b", 1) == "late"  # it lived all through round 1


def test_a_death_between_two_looks_counts_from_the_first_of_them() -> None:
    observer = observe([(0, {"a": True}, []), (76, {"a": True}, []), (76.5, {"a": False}, []), (140, {"a": True}, [])])
    assert observer.verdict("a", 0) == "dead"
    assert observer.longest_pause_s == pytest.approx(76.0)


def test_who_came_later_did_not_live_before() -> None:
    observer = observe([(0, {"a": True}, []), (90, {"a": True, "b": True}, []), (190, {"a": True, "b": True}, [])])
    assert [observer.verdict("b", index) for index in (0, 1)] == ["dead", "dead"]
    assert observer.verdict("a", 1) == "late"


def test_a_node_that_ended_after_its_last_round_had_settled_it() -> None:
    observer = observe(
        [(0, {"a": True}, []), (60, {"a": True}, [("a", 0)]), (62, {"a": False}, []), (80, {"a": False}, [])]
    )
    assert observer.verdict("a", 0) == "settled"


def test_recorded_events_give_every_node_settled_in_every_round() -> None:
    """Genesis from the recording: its rounds ended at genesis + 12 + 54 (r + 1)."""
    ready = [e["time"] for _, e in recorded() if e["event"] == "ready"]
    train = min(e["time"] for _, e in recorded() if e["event"] == "phase" and e["round"] == 0)
    times = RoundTimes(recorded_manifest().timing, train - 12, 1.0)
    observer = Observer(times, min(ready))
    lives = {spec.name: True for spec in SPECS}
    observer.look(min(ready), lives, [])
    for name, event in recorded():
        observer.look(event["time"], lives, [(name, event["round"])] if event["event"] == "round" else [])
    verdicts = [row["verdicts"] for row in observer.rounds().values()]
    assert len(verdicts) >= 3 and all(set(row.values()) == {"settled"} for row in verdicts[:3])


def lock(paths: RunPaths, name: str, pid: int) -> None:
    paths.node(name).mkdir(parents=True, exist_ok=True)
    (paths.node(name) / "lock").write_text(str(pid))


def test_it_reads_files_and_pids_and_keeps_what_an_earlier_part_of_the_run_saw(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for name, pid in (("a", os.getpid()), ("b", 2**22 + 1)):
        lock(paths, name, pid)
    (paths.node("a") / "events.jsonl").write_text(json.dumps({"event": "round", "round": 0, "time": 5.0}) + "\n")
    assert lock_holder_lives(paths.node("a") / "lock") and not lock_holder_lives(paths.node("b") / "lock")
    times = RoundTimes(recorded_manifest().timing, 1e12, 1.0)  # far in the future: every round is in time
    for _ in range(2):
        watcher = Watcher(paths, times)
        watcher.look()
        watcher.write()
        assert watcher.observer.verdict("a", 0) == "settled"
    (paths.root / RESULT).write_text(
        json.dumps(
            {"grace_s": 10.0, "longest_pause_s": 9.0, "interrupted": [], "rounds": {"7": {"verdicts": {"a": "late"}}}}
        )
    )
    Watcher(paths, times).write()
    rows = watch_rows(json.loads((paths.root / RESULT).read_text()), {0, 7})
    assert rows is not None and (rows["interrupted"], rows["longest_pause_s"]) == ([0], 9.0)
    assert rows["rounds"] == [{"index": 7, "settled": [], "late": ["a"], "dead": []}]
