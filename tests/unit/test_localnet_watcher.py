"""The outside watcher: verdicts from what it sees and its own clock, never from what a node says of the time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from localnet_recording import SPECS, recorded, recorded_manifest

from distributed_training.localnet.judge.fault_checks import stood_still
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
    """Looks at (seconds after genesis, who lives, what was new), few and far between; the machine runs all the time."""
    observer = Observer(TIMES, began)
    for at, lives, fresh in steps:
        observer.look(GENESIS + at, lives, fresh, at)
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
    observer.look(GENESIS + 77, {"a": True}, [], 77)
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


END_0 = 66.0  # seconds after genesis: round 0 is over


def while_it_slept(pause: tuple[float, float], settles: float, awake: bool | None, until: float = 200.0) -> Observer:
    """Looks all five times a second but for one pause; node "a" settles round 0 at `settles`.

    `awake`: the machine ran meanwhile, only the watcher did not; None: no clock that would tell.
    """
    observer, at, lost = Observer(TIMES, GENESIS), 0.0, 0.0
    told = False
    while at < until:
        fresh = [("a", 0)] if at >= settles and not told else []
        told = told or bool(fresh)
        observer.look(GENESIS + at, {"a": True}, fresh, None if awake is None else at - lost)
        if pause[0] <= at < pause[1]:
            lost += 0.0 if awake else pause[1] - at
            at = pause[1]
        else:
            at += 0.2
    return observer


@pytest.mark.parametrize("awake", [False, None])
def test_a_round_is_due_as_much_later_as_the_machine_stood_still(awake: bool | None) -> None:
    slept = (END_0 - 20, END_0 + 50)
    observer = while_it_slept(slept, END_0 + 56, awake)
    assert observer.verdict("a", 0) == "settled"
    assert [round(b - a) for a, b in observer.stood_still] == [70] and observer.longest_pause_s < 1
    assert while_it_slept(slept, END_0 + 79, awake).verdict("a", 0) == "settled"
    assert while_it_slept(slept, END_0 + 82, awake).verdict("a", 0) == "late"  # ten seconds after what was its end
    assert while_it_slept(slept, END_0 + 300, awake, until=END_0 + 75).verdict("a", 0) is None  # not over yet
    over_all_of_it = while_it_slept((5, 300), 305, awake, until=400)
    assert over_all_of_it.verdict("a", 0) == "settled"  # from 300 on it has as long as any round takes
    before = while_it_slept((0.5, 8), END_0 + 11, awake)
    assert before.verdict("a", 0) == "late"  # a pause that was over when the round began excuses nothing


def test_a_watcher_that_was_stopped_alone_excuses_only_what_it_could_not_see() -> None:
    stopped = (END_0 - 20, END_0 + 50)
    assert while_it_slept(stopped, END_0 + 30, True).verdict("a", 0) == "unseen"
    assert while_it_slept(stopped, END_0 + 51, True).verdict("a", 0) == "late"  # seen to be missing at END_0 + 50
    assert while_it_slept((20, 40), END_0 + 11, True).verdict("a", 0) == "late"
    assert while_it_slept((END_0 + 12, END_0 + 40), END_0 + 20, True).verdict("a", 0) == "late"
    assert while_it_slept((20, END_0 + 5), 30, True).verdict("a", 0) == "settled"
    assert while_it_slept(stopped, END_0 + 51, True).longest_pause_s == pytest.approx(70)


def test_what_stood_still_is_written_down_with_its_round(tmp_path: Path) -> None:
    watcher = Watcher(RunPaths(tmp_path), RoundTimes(recorded_manifest().timing, GENESIS, 1.0))
    watcher.observer.stood_still += [(GENESIS + 30, GENESIS + 100.04), (GENESIS + 2, GENESIS + 9)]
    watcher.write()
    rows = watch_rows(json.loads((tmp_path / RESULT).read_text()), {0})
    assert rows is not None and rows["stood_still"] == [{"round": 0, "seconds": 70.0}, {"round": -1, "seconds": 7.0}]
    assert stood_still({"watch": rows}) == [
        "the machine stood still for 70 s in round 0", "the machine stood still for 7 s before round 0",
    ]  # fmt: skip


def test_recorded_events_give_every_node_settled_in_every_round() -> None:
    """Genesis from the recording: its rounds ended at genesis + 12 + 54 (r + 1)."""
    ready = [e["time"] for _, e in recorded() if e["event"] == "ready"]
    train = min(e["time"] for _, e in recorded() if e["event"] == "phase" and e["round"] == 0)
    times = RoundTimes(recorded_manifest().timing, train - 12, 1.0)
    observer = Observer(times, min(ready))
    lives = {spec.name: True for spec in SPECS}
    observer.look(min(ready), lives, [], min(ready))
    for name, event in recorded():
        settled = [(name, event["round"])] if event["event"] == "round" else []
        observer.look(event["time"], lives, settled, event["time"])
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
            {
                "grace_s": 10.0,
                "longest_pause_s": 9.0,
                "interrupted": [],
                "stood_still": [],
                "rounds": {"7": {"verdicts": {"a": "late"}}},
            }
        )
    )
    Watcher(paths, times).write()
    rows = watch_rows(json.loads((paths.root / RESULT).read_text()), {0, 7})
    assert rows is not None and (rows["interrupted"], rows["longest_pause_s"]) == ([], 9.0), "before round 0"
    assert rows["rounds"] == [{"index": 7, "settled": [], "late": ["a"], "dead": [], "unseen": []}]


@pytest.mark.parametrize(
    ("verdicts", "interrupted"),
    [({"a": "settled", "b": "settled"}, []), ({"a": "settled", "b": None}, [0]), ({"a": "settled", "b": "dead"}, [0])],
)
def test_the_round_in_which_a_run_was_stopped_is_named_unless_everybody_had_settled_it(
    tmp_path: Path, verdicts: dict[str, str | None], interrupted: list[int]
) -> None:
    former = {"grace_s": 10.0, "longest_pause_s": 0.1, "interrupted": [], "stood_still": []}
    (tmp_path / RESULT).write_text(json.dumps(former | {"rounds": {"0": {"verdicts": verdicts}}}))
    times = RoundTimes(recorded_manifest().timing, time.time() - 30, 1.0)  # 18 blocks into round 0
    Watcher(RunPaths(tmp_path), times).write()
    assert json.loads((tmp_path / RESULT).read_text())["interrupted"] == interrupted
