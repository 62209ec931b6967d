"""What the page says of a run: the numbers of its summary, and nothing of what is strange in its files."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from dashboard_run import MINER, lines, make_run, read, site_of
from localnet_recording import recorded, recorded_manifest, recorded_summary

from distributed_training.dashboard.about import check_run_dir
from distributed_training.dashboard.chain import ChainWatch
from distributed_training.dashboard.copy import check_own, copy_once, owner_page, public
from distributed_training.dashboard.fold import NEWEST_ROUNDS, PERSON_ROUNDS
from distributed_training.dashboard.page import agreement
from distributed_training.dashboard.site import Site
from distributed_training.dashboard.values import MAX_NAME, MAX_TEXT
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.settings.config import SubtensorSection


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def test_the_page_has_the_numbers_of_the_summary(run: Path) -> None:
    site, summary = read(run), recorded_summary()
    page, told = site.plain("run"), summary["rounds"]
    for name in ("index", "applied", "reason", "heldout_loss", "tokens"):
        assert page["rounds"][name] == [row[name] for row in told], name
    assert page["rounds"]["included"] == [len(row["included"]) for row in told]
    assert page["rounds"]["state_root"] == [row["state_roots"]["owner"][:16] for row in told]
    assert page["initial_heldout_loss"] == summary["initial_heldout_loss"]
    assert dict(page["baselines"]["union"]) == {int(r): v for r, v in summary["baseline_losses"]["union"].items()}
    assert (page["now"]["state"], page["run"]["name"]) == ("ended", recorded_manifest().name)
    cards = told[1]["scores_by_validator"]
    for row in page["leaderboard"]:
        of = [cards[name][str(row["uid"])] for name in ("validator-0", "validator-1")]
        assert row["weight"] == pytest.approx(sum(card["weight"] for card in of) / 2)
    assert [row["rank"] for row in page["leaderboard"]] == [1, 2, 3, 4]
    one = site.plain("round", 1)
    assert (
        one["credit"] == told[1]["credit"] and one["scores"]["1"]["3"]["weight"] == cards["validator-0"]["3"]["weight"]
    )
    assert {row["name"] for row in one["timeline"]} == set(summary["nodes"])
    assert site.plain("round", 99) is None and site.plain("uid", 99) is None


def test_a_round_is_a_timeline_slices_and_a_matrix(tmp_path: Path) -> None:
    said = {"applied": True, "reason": "applied", "state_root": "ab" * 32, "included": [3, 4], "counted": [0, 1],
            "backed_up": [1], "missing": {"0": [4, 6]}, "num_slices": 3, "reducers": {"0": 3, "1": 4, "2": 5},
            "credit": {"3": 1.0, "4": 0.6, "5": 0.0, "6": 0.3}, "tokens": {"3": 7, "4": 5}}  # fmt: skip
    head = {"role": "miner", "uid": 3, "round": 7}
    file = lines(
        tmp_path / "nodes" / "me" / "events.jsonl",
        head | {"time": 100.0, "event": "phase", "phase": "train"},
        head | {"time": 104.0, "event": "phase", "phase": "settle"},
        head | {"time": 109.5, "event": "round"} | said,
    )
    found = site_of(file).plain("round", 7)
    phases = [{"phase": "train", "start": 0.0, "end": 4.0}, {"phase": "settle", "start": 4.0, "end": 9.5}]
    assert found["timeline"] == [{"name": "me", "uid": 3, "role": "miner", "phases": phases, "stall_s": None}]
    assert [part["state"] for part in found["slices"]] == ["counted", "backed_up", "lost"]
    cells = [["own", "in", None], ["out", "own", None], ["out", "out", None], ["out", "in", None]]
    assert found["matrix"] == {"senders": [3, 4, 5, 6], "cells": cells}


def test_why_a_miner_has_its_weight_is_said_from_its_audits_and_their_thresholds(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    before = read(run).plain("uid", MINER.uid)
    assert before["observations"][0]["validator"] in (1, 2) and "audits" in " ".join(before["why"])
    failed = {"verdict": "fail", "reason": "gradient", "error": 0.5, "good": 0.02, "bad": 0.1, "depth": 5,
              "failed_step": 2, "goodput_bytes_per_s": 1e6, "duty": 0.5}  # fmt: skip
    told = {"event": "audit", "role": "validator", "uid": 1, "round": 9, "target": MINER.uid} | failed
    lines(run / "nodes" / "validator-0" / "events.jsonl", told)
    found = read(run).plain("uid", MINER.uid)
    row = found["observations"][0]
    assert (row["good"], row["bad"]) == (0.02, 0.1)
    assert (row["duty"], row["goodput_bytes_per_s"]) == (0.5, 1e6)
    text = " ".join(found["why"])
    assert "FAILED over 5 steps: gradient at step 2; its error 0.5 is good up to 0.02 and fails above 0.1" in text


def test_validators_agree_as_far_as_their_rows_are_the_same() -> None:
    rows = {1: {5: 1.0}, 2: {5: 0.75, 6: 0.25}, 3: {}}
    assert agreement(1, rows, {}) == agreement(2, rows, {}) == 0.75
    assert agreement(3, rows, {}) is None and agreement(1, {1: {5: 1.0}}, {}) is None


def test_a_miner_that_stays_away_is_not_said_to_be_in_every_round(tmp_path: Path) -> None:
    head = {"role": "owner", "uid": 0, "event": "round", "applied": True, "state_root": "ab" * 32}
    told = ([3, 4], [3], [3, 4], [3])
    file = lines(
        tmp_path / "owner.jsonl",
        head | {"round": 4, "applied": False, "included": [], "credit": {}},
        *(head | {"round": i, "included": who, "credit": dict.fromkeys(map(str, who), 1.0)}
          for i, who in enumerate(told, 5)),
    )  # fmt: skip
    site = site_of(file)
    assert {row["uid"]: row["included_share"] for row in site.plain("run")["leaderboard"]} == {3: 1.0, 4: 0.5}
    assert "included in 50.0 % of" in " ".join(site.plain("uid", 4)["why"])


STRANGE: list[dict[str, Any] | str] = [
    "not json",
    "[1, 2]",
    "\x00\xff",
    "[" * 5000,
    '{"event": "round", "round": 1e999}',
    '{"event": "step", "round": 3, "loss": NaN, "step": 1e400}',
    {"event": "round", "round": True, "uid": [], "included": "all", "counted": 4, "credit": [1], "tokens": {"x": "y"}},
    {"event": "round", "round": 2**70, "uid": -4},
    {"event": "scores", "round": 1, "uid": 1, "cards": {"3": None, "4": {"weight": "heavy"}, "-1": {}}},
    {"event": "audit", "round": 1, "uid": 1, "target": "me", "verdict": {"a": 1}},
    {"event": "weights", "round": 1, "uid": 1, "weights": 3},
    {"event": "step", "round": 3, "loss": 10**400, "time": -(10**400)},
    {"event": "round", "round": 3, "uid": 1, "backed_up": 1, "tokens": {"3": 10**400}},
    {"event": "phase", "round": 1, "uid": 1, "phase": "x" * 10_000},
    {
        "event": "fault",
        "round": 1,
        "uid": 1,
        "what": "<img src=x onerror=alert(1)>",
        "detail": "\u202e" + "y" * 200_000,
    },
    {
        "event": "round",
        "time": "noon",
        "round": 1,
        "uid": 1,
        "reducers": {"0": "x"},
        "num_slices": 10**12,
        "backed_up": 5,
    },
    '{"event": "fault", "detail": "' + "z" * (3 << 20) + '"}',
    '{"event": "fault", "what": "half a li',
]


def test_whatever_stands_in_the_files_the_page_is_json_of_bounded_size(tmp_path: Path) -> None:
    file = lines(tmp_path / "nodes" / ("n" * 200) / "events.jsonl", *STRANGE)
    site = site_of(file)
    for path in (
        "run.json",
        "round/1.json",
        "round/2.json",
        "round/3.json",
        "uid/1.json",
        "uid/3.json",
        "uid/9999999999.json",
    ):
        site.document(path)
    page = site.plain("run")
    (node,) = page["nodes"]
    assert len(node["name"]) == MAX_NAME and len(node["phase"]) == MAX_NAME
    (fault,) = page["faults"]
    assert fault["what"] == "<img src=x onerror=alert(1)>" and len(fault["detail"]) == MAX_TEXT
    assert len(json.dumps(page)) < 10_000 and page["now"]["unreadable_lines"] >= 8
    lines(file, "ne", {"event": "fault", "round": 1, "uid": 1, "what": "later", "detail": ""})
    site.read_all()
    assert site.plain("run")["num_faults"] == 2, "half a line costs that line only"


def test_strange_notes_of_a_demo_cost_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"seed": NaN, "nodes": {"x": {"uid": [], "role": null}}}')
    lines(tmp_path / "baselines" / "union.json", {"losses": {"--1": 2.0, "\u00b2": 2.0, "-1": 5.0, "0": 10**400}})
    lines(tmp_path / "baselines" / "\u00b2.json", {"losses": {"0": 4.0}})
    site = read(tmp_path)
    assert site.document("run.json") is not None
    assert site.plain("run")["baselines"] == {"union": [[-1, 5.0]], "solo": {}}


def many_rounds(path: Path, count: int) -> Path:
    root = "cd" * 32
    with path.open("w") as file:
        for index in range(count):
            head = f'{{"time": {index}.0, "role": "validator", "uid": 1, "round": {index}, "event": '
            file.write(f'{head}"phase", "phase": "train"}}\n')
            file.write(
                f'{head}"round", "applied": true, "reason": "", "state_root": "{root}", "included": [3], '
                f'"counted": [0], "num_slices": 1, "credit": {{"3": 1.0}}, "tokens": {{"3": {index}}}}}\n'
            )
    return path


def test_of_many_rounds_the_newest_are_whole_and_any_can_be_read_again(tmp_path: Path) -> None:
    count = 4 * NEWEST_ROUNDS
    site = site_of(many_rounds(tmp_path / "all.jsonl", count))
    index = site.plain("run")["rounds"]["index"]
    assert index[-NEWEST_ROUNDS:] == list(range(count - NEWEST_ROUNDS, count))
    old = index[:-NEWEST_ROUNDS]
    assert old[0] == 0 and NEWEST_ROUNDS / 3 < len(old) <= NEWEST_ROUNDS and max(b - a for a, b in pairwise(old)) <= 4
    assert len(site.plain("uid", 3)["rounds"]) == PERSON_ROUNDS
    for number in (0, 1, 1777, count - 1):
        found = site.plain("round", number)
        assert (found["index"], found["start"], found["credit"]) == (number, float(number), {"3": 1.0})


def test_events_of_a_simulation_and_of_a_merged_file_are_read(tmp_path: Path) -> None:
    merged = lines(tmp_path / "merged.jsonl", *({"node": name, **event} for name, event in recorded()))
    simulated = lines(
        tmp_path / "s.jsonl", *(json.dumps([e["time"], n, dict(e)], sort_keys=True) for n, e in recorded())
    )
    a, b = (site_of(file).plain("run") for file in (merged, simulated))
    assert a["rounds"] == b["rounds"] and a["leaderboard"] == b["leaderboard"]
    assert a["rounds"]["index"] == [0, 1, 2] and {n["name"] for n in a["nodes"]} == set(recorded_summary()["nodes"])


def test_a_run_is_running_silent_crashed_or_ended(tmp_path: Path) -> None:
    site = read(make_run(tmp_path, over=False))
    assert site.plain("run")["now"]["state"] == "ended", "its nodes said so"
    path = lines(
        tmp_path / "nodes" / "late" / "events.jsonl",
        {"event": "phase", "time": recorded()[0][1]["time"], "round": 0, "phase": "train"},
    )
    site.read_all()
    assert site.plain("run")["now"]["state"] == "silent"
    (path.parent / "lock").write_text(f"{2**22 + 5}\npython\n{os.uname().nodename}\n")
    site.read_all()
    page = site.plain("run")
    assert page["now"]["state"] == "crashed" and "died" in page["now"]["verdict"]["reasons"][0]
    assert {n["name"]: n["state"] for n in page["nodes"]}["late"] == "killed"
    shutil.rmtree(tmp_path)
    site.read_all()
    assert site.plain("run")["rounds"]["index"] == [0, 1, 2], "what was read stays when the folder goes"
    assert site.plain("round", 1) is None


def test_a_folder_that_is_no_run_or_another_versions_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        check_run_dir(tmp_path)
    (tmp_path / "manifest.json").write_text('{"protocol_version": 1, "name": "old"}')
    with pytest.raises(ConfigError, match="another version: its protocol_version is 1"):
        check_run_dir(tmp_path)
    (tmp_path / "manifest.json").write_text('{"protocol_ver')
    check_run_dir(tmp_path)
    assert read(tmp_path).plain("run")["now"]["state"] == "empty"


SECRETS = ("/home/me/run", "/secret", "203.0.113.9:8091", "ws://node.example:9944", "2001:db8::1:2", "~/wallets/mine")


def test_the_copy_is_whole_and_holds_no_secret(tmp_path: Path) -> None:
    run, folder = make_run(tmp_path / "run"), tmp_path / "public"
    secret = " ".join((*SECRETS, os.uname().nodename))
    fields = ("reason", "what", "detail", "phase", "note", "verdict", "hotkey", "path")
    told = {"role": "owner", "uid": 0, "round": 1, "target": 3} | dict.fromkeys(fields, secret)
    for kind in ("ready", "fault", "audit", "phase", "stopped", "checkpoint"):
        lines(run / "nodes" / "owner" / "events.jsonl", told | {"event": kind})
    count = copy_once(Site(run, live=False), None, folder)
    written = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert sum(path.parts[0] == "data" for path in written) == count
    for data in written.values():
        assert not [secret for secret in (*SECRETS, str(tmp_path)) if secret.encode() in data]
        assert not re.search(rf"\b{os.uname().nodename}\b".encode(), data)
    assert b'dt-mode" content="static"' in written[Path("index.html")]
    page = json.loads(written[Path("data/run.json")])
    assert page["features"] == {"live": False, "sample": False} and page["rounds"]["index"] == [0, 1, 2]
    (folder / "data/round/7777.json").write_text("{}")
    (folder / "CNAME").write_text("mine")
    copy_once(Site(run, live=False), None, folder)
    assert not (folder / "data/round/7777.json").exists() and (folder / "CNAME").read_text() == "mine"


def test_why_the_chain_cannot_be_read_is_for_its_operator(tmp_path: Path) -> None:
    file = lines(tmp_path / "e", {"event": "phase", "time": 5.0, "role": "owner", "uid": 0, "round": 2})
    site = Site(None, [file], live=False)
    site.read_all()
    site.tell_chain(None, {}, "certificate is not valid for node.example")
    (reason,) = site.plain("run")["now"]["verdict"]["reasons"]
    assert "cannot be read" in reason and "node.example" not in reason


def test_of_one_node_alone_nothing_is_claimed_of_others(tmp_path: Path) -> None:
    """Neither a rank that nobody gave, nor tokens that nobody told; its run is named."""
    own = make_run(tmp_path, over=False) / "nodes" / MINER.name
    page = read(own).plain("run")
    rows = {row["uid"]: row for row in page["leaderboard"]}
    assert len(rows) > 1 and {row["rank"] for row in rows.values()} == {None}
    assert {uid for uid, row in rows.items() if row["tokens"] is not None} == {MINER.uid}
    assert page["run"]["name"] == recorded_manifest().name


def test_a_copy_takes_no_folder_of_others_and_nothing_does_not_replace_it(tmp_path: Path) -> None:
    run, folder = make_run(tmp_path / "run"), tmp_path / "public"
    for taken in (run, tmp_path):
        with pytest.raises(ConfigError, match="and is no copy of a page; give an empty or new folder"):
            check_own(taken)
    (folder / ".git").mkdir(parents=True)
    check_own(folder)
    copy_once(Site(run, live=False), None, folder)
    check_own(folder)
    before, empty = (folder / "data/run.json").read_bytes(), Site(None, live=False)
    with pytest.raises(LocalFault, match="nothing to show"):
        copy_once(empty, ChainWatch(empty, 1, "local", None, tmp_path / "no.sqlite"), folder)
    assert (folder / "data/run.json").read_bytes() == before
    chain_of_demo(tmp_path / "chain.sqlite")
    copy_once(empty, ChainWatch(empty, 1, "local", None, tmp_path / "chain.sqlite"), folder)
    assert json.loads((folder / "data/run.json").read_bytes())["now"]["state"] == "chain"


def test_what_is_public_keeps_what_is_no_place() -> None:
    kept = {"a": "round 5: pass, 4 steps", "b": [1.5, None, True], "c": "I/G = 3/4, 12:30, 1.2.3"}
    assert public(kept, "box") == kept
    assert public({"detail": "x", "d": "on box at file:/a/b"}, "box") == {"detail": None, "d": "on ... at file:..."}


async def test_a_local_chain_is_read_and_left_as_it_is(tmp_path: Path) -> None:
    site, path = read(make_run(tmp_path, over=False)), tmp_path / "chain.sqlite"
    lines(tmp_path / "nodes" / "late" / "events.jsonl", {"event": "phase", "time": 5.0, "round": 2, "phase": "train"})
    site.read_all()
    watch = ChainWatch(site, None, "local", None, path)
    await watch.look()
    assert site.plain("chain") is None and "cannot be read" in site.plain("run")["now"]["verdict"]["reasons"][0]
    with closing(sqlite3.connect(path)) as half_made:
        half_made.execute("create table meta (name, value)")
    await watch.look()
    assert "cannot be read: TypeError" in site.plain("run")["now"]["verdict"]["reasons"][0]
    path.unlink()
    chain_of_demo(path)
    before = path.read_bytes()
    await watch.look()
    found, page = site.plain("chain"), site.plain("run")
    assert path.read_bytes() == before and {p.name for p in tmp_path.glob("chain.sqlite*")} == {path.name}
    assert [row["uid"] for row in found["uids"]] == [0, 1] and found["verdict"] == page["now"]["verdict"]
    assert page["now"]["block"] == found["block"] and page["validators"][0]["stake"] == 100.0


def test_an_owner_writes_its_page_with_each_checkpoint_of_what_it_knows(tmp_path: Path) -> None:
    run, folder = make_run(tmp_path / "run"), tmp_path / "public"
    chain_of_demo(run / "chain.sqlite")
    (run / "nodes" / "owner").rename(run / "nodes" / "my-hotkey")
    events, sections = run / "nodes" / "my-hotkey" / "events.jsonl", SubtensorSection()
    sink = owner_page(folder, events, recorded_manifest(), sections, run / "chain.sqlite")
    sink.write({"event": "round"})
    assert not (folder / "index.html").exists()
    sink.write({"event": "checkpoint"})
    page = json.loads((folder / "data" / "run.json").read_text())
    assert [node["name"] for node in page["nodes"]] == ["owner 0"] and page["baselines"] is None
    assert page["rounds"]["index"] == [0, 1, 2] and page["run"]["name"] == recorded_manifest().name
    assert json.loads((folder / "data" / "chain.json").read_text())["uids"][1]["stake"] == 100.0
    assert "my-hotkey" not in "".join(path.read_text() for path in folder.rglob("*.json"))
    (folder / "data" / "run.json").unlink()
    (folder / "data" / "run.json").mkdir()
    with pytest.raises(OSError, match=r"run\.json"):
        sink.close()
    with pytest.raises(ConfigError, match="--page-dir"):
        owner_page(events / "x", events, recorded_manifest(), sections, None)


def chain_of_demo(path: Path) -> None:
    from distributed_training.chain.keys import derive_keypair
    from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock

    owner = derive_keypair(1, "owner").ss58_address
    neurons = [
        GenesisNeuron(derive_keypair(1, name).ss58_address, owner, stake=100.0, permit=True)
        for name in ("owner", "validator-0")
    ]
    create_chain(
        path, seed=1, block_s=0.1, netuid=1, tempo=54, weights_rate_limit=20, version_key=1, max_uids=16,
        owner_hotkey=owner, owner_coldkey=owner, neurons=neurons,
    )  # fmt: skip
    start_clock(path)
