"""The fault log: what the demo noted of a kill, what the node said afterwards, and when the chain shows it at work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from localnet_recording import OPTIONS, SPECS, recorded_manifest, recorded_view

from distributed_training.errors import ConfigError
from distributed_training.localnet.events import RunEvents
from distributed_training.localnet.judge.fault_summary import OnChain, fault_rows, rejoined
from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.options import parse_options
from distributed_training.localnet.run.create import Run, open_or_create
from distributed_training.localnet.run.faults import restarted
from distributed_training.localnet.run.kills import Kill
from distributed_training.localnet.show.table import doing, event_line

RUN = Run(RunPaths(OPTIONS.run_dir), recorded_manifest(), SPECS, 1, OPTIONS.params(), resumed=False)


def killed(name: str, role: str, index: int) -> dict[str, Any]:
    head = {"time": 10.0, "event": "killed", "round": index, "name": name, "role": role, "phase": "average"}
    return head | {"block": 90, "pid": 7, "helpers": [8], "bytes_in_flight": 1234}


AGAIN = {"time": 20.0, **restarted("miner-2", 9, 100, ())}


def seen(**rounds: tuple[set[int], int, int]) -> dict[int, OnChain]:
    """r1=({uids with a map}, block of validator 1's weights, round of the newest checkpoint)."""
    return {int(k[1:]): OnChain(frozenset(maps), {1: update}, done) for k, (maps, update, done) in rounds.items()}


def test_a_miner_is_back_when_an_applied_round_includes_it() -> None:
    view = recorded_view()  # rounds 0 to 2, everybody included
    kill = killed("miner-2", "miner", 0)
    assert rejoined(RUN, view, kill, AGAIN, {}) == 1
    for node in view.nodes.values():
        node.rounds[1] = {**node.rounds[1], "included": [3, 4, 6]}
    assert rejoined(RUN, view, kill, AGAIN, {}) == 2
    assert rejoined(RUN, view, kill | {"round": 2}, AGAIN, {}) is None
    assert rejoined(RUN, view, kill, None, {}) is None


def test_a_validator_is_back_when_its_map_and_later_weights_are_on_chain() -> None:
    kill, view = killed("validator-0", "validator", 1), recorded_view()
    assert rejoined(RUN, view, kill, AGAIN, seen(r1=({1}, 80, 0), r2=({1}, 80, 0), r3=({1}, 180, 0))) == 3
    assert rejoined(RUN, view, kill, AGAIN, seen(r2=({1}, 120, 0), r3=({1}, 180, 0))) == 2
    assert rejoined(RUN, view, kill, AGAIN, seen(r2=(set(), 120, 0), r3=({1}, 120, 0))) == 3
    assert rejoined(RUN, view, kill, AGAIN, seen(r2=({1}, 95, 0), r3=({1}, 100, 0))) is None
    assert rejoined(RUN, view, kill, AGAIN, seen(r2=({2}, 120, 0))) is None


def test_the_owner_is_back_with_a_checkpoint_of_a_later_state() -> None:
    kill, view = killed("owner", "owner", 1), recorded_view()
    assert rejoined(RUN, view, kill, AGAIN, seen(r1=(set(), 0, 1), r2=(set(), 0, 1), r3=(set(), 0, 4))) == 3
    assert rejoined(RUN, view, kill, AGAIN, seen(r1=(set(), 0, 2))) == 1
    assert rejoined(RUN, view, kill, AGAIN, seen(r1=(set(), 0, -1), r2=(set(), 0, 1))) is None


def test_without_kills_there_is_no_row_and_the_chain_is_not_asked() -> None:
    assert fault_rows(RUN, recorded_view(), [{"event": "ended", "name": "owner"}], 2) == []


def test_a_kill_and_a_restart_are_lines_and_show_in_the_table(tmp_path: Path) -> None:
    line = event_line("demo", killed("miner-2", "miner", 1), {})
    assert line is not None
    assert "round 1: miner-2 killed at average, pid 7, block 90, 1234 bytes in flight" in line
    assert event_line("demo", restarted("miner-2", 9, 100, [8]), {}) == (
        "demo         miner-2 started again, pid 9; survivors: 8"
    )
    paths = RunPaths(tmp_path)
    events = RunEvents(paths, SPECS)
    node = events.view.nodes["miner-2"]
    events.note(killed("miner-2", "miner", 1))
    assert "killed" in doing(node)
    events.note(AGAIN)
    assert "loading" in doing(node)
    events.close()
    again = RunEvents(paths, SPECS)  # a resumed run knows what happened before
    again.close()
    assert [e["event"] for e in again.notes] == ["killed", "restarted"]
    assert not again.view.nodes["miner-2"].killed


def test_the_plan_belongs_to_the_run_and_is_kept_when_it_is_resumed(tmp_path: Path) -> None:
    flags = ["--run-dir", str(tmp_path / "run"), "--miners", "2", "--block-seconds", "1"]  # nothing is measured
    flags += ["--kill", "miner@train", "--kill", "owner@settle"]
    made = open_or_create(parse_options([*flags, "--rounds", "8"]), lambda text: None)
    assert {type(kill) for kill in made.kills} == {Kill} and len(made.kills) == 2
    opened = open_or_create(parse_options([*flags, "--rounds", "20"]), lambda text: None)
    assert opened.resumed and opened.kills == made.kills
    assert json.loads(made.paths.run.read_text())["kills"][0]["name"] == made.kills[0].name
    with pytest.raises(ConfigError, match=r"kill .* there, .* asked for"):
        open_or_create(parse_options([*flags, "--kill", "miner@train"]), lambda text: None)
