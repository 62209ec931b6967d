"""What journals keep, told by uid and by round: beside a node that writes, and of files that are none."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_training.errors import ConfigError, LocalFault
from distributed_training.history import main
from distributed_training.journal import MIGRATIONS, Journal, ToldSink
from distributed_training.operator.history import books, read
from distributed_training.protocol.observed import ScoreCard

AUDIT = {"verdict": "fail", "quality": 0.0, "depth": 3, "failed_step": 2, "error": 0.5, "reason": "gradient"}
CARD = ScoreCard("5F", 0, 5, (), 0.25, 1.0, 2.0, None, (), True, 9, "gradient", "round 1: fail")


def observation(uid: int, audit: dict[str, Any] | None) -> dict[str, Any]:
    return {"uid": uid, "credited_tokens": 100.0, "goodput_bytes_per_s": None, "duty": 1.0, "audit": audit}


def settled(**fields: Any) -> dict[str, Any]:
    return {"applied": True, "reason": "applied", "state_root": "ab" * 32, "included": [5], "credit": {"5": 0.5},
            "tokens": {"5": 200}, "own_tokens": None, "steps": None, **fields}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A validator (uid 1) and two miners (uids 5 and 6), two rounds."""
    validator, miner = (tmp_path / "nodes" / name for name in ("validator-0", "miner-0"))
    journal, sink = Journal(validator / "journal.sqlite"), ToldSink(validator / "journal.sqlite")
    for index in (0, 1):
        journal.save_round(index, settled())
        journal.save_cards(index, {"5F": CARD}, {"5F": observation(5, AUDIT), "5G": observation(6, None)})
        sink.write({"event": "weights", "round": index, "uid": 1, "time": 7.5, "block": 60, "weights": {"5": 0.75}})
    sink.write({"event": "fault", "round": None, "uid": 1, "time": 8.5, "what": "probe", "detail": "a\x1b[31mb"})
    sink.write({"event": "step", "round": 1, "uid": 1, "time": 9.0})
    (validator / "events.jsonl").write_text('{"event":"ready","uid":1}\n')
    journal.close()
    sink.close()
    own = Journal(miner / "journal.sqlite")
    own.save_round(1, settled(own_tokens=200, steps=4))
    own.close()
    (miner / "events.jsonl").write_text('{"event":"ready","uid":5}\n')
    return tmp_path


def rows(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert main(["--run-dir", str(run), "--json", *flags]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_all_that_is_told_of_a_uid_by_its_own_node_and_by_validators(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = rows(run, capsys, "--uid", "5")
    assert [(row["round"], row["kind"], row["node"]) for row in told] == [
        (0, "observation", "validator-0"), (0, "weight", "validator-0"), (1, "round", "miner-0"),
        (1, "observation", "validator-0"), (1, "weight", "validator-0"), (1, "card", "validator-0"),
    ]  # fmt: skip
    assert (told[0]["verdict"], told[0]["failed_step"], told[0]["duty"]) == ("fail", 2, 1.0)
    assert (told[1]["weight"], told[1]["block"], told[1]["time"]) == (0.75, 60, 7.5)
    assert (told[2]["included"], told[2]["credit"], told[2]["steps"], told[2]["tokens"]) == (True, 0.5, 4, 200)
    assert (told[5]["steps_term"], told[5]["reason"]) == (0.25, "gradient")
    assert [row["reason"] for row in rows(run, capsys, "--uid", "6") if row["kind"] == "observation"] == [
        "not audited", "not audited",
    ]  # fmt: skip
    assert [row["kind"] for row in rows(run, capsys, "--uid", "1")].count("fault") == 1


def test_all_that_is_told_of_a_round_by_every_node_or_by_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = rows(run, capsys, "--round", "1")
    assert [row["node"] for row in told if row["kind"] == "round"] == ["miner-0", "validator-0"]
    assert [row["included"] for row in told if row["kind"] == "round"] == [True, None], "a validator does not train"
    assert {row["round"] for row in told} == {1} and len(told) == 6
    assert {row["node"] for row in rows(run / "nodes" / "validator-0", capsys, "--round", "1")} == {"validator-0"}


def test_csv_has_the_same_rows_and_a_person_gets_a_line_each_without_control_characters(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run-dir", str(run), "--round", "1", "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["kind"] for row in table] == [row["kind"] for row in rows(run, capsys, "--round", "1")]
    assert table[-2]["weight"] == "0.75" and table[-2]["verdict"] == ""
    assert main(["--run-dir", str(run), "--uid", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "     -  fault        validator-0      1  probe: a?[31mb" in lines


def test_what_a_running_node_adds_is_told_once(run: Path) -> None:
    node = run / "nodes" / "validator-0"
    journal, found = Journal(node / "journal.sqlite"), books(node)
    before = read(found, "uid", 5)
    assert before and read(found, "uid", 5) == []
    journal.save_cards(2, {"5F": CARD}, {"5F": observation(5, AUDIT)})
    assert [(row["kind"], row["round"]) for row in read(found, "uid", 5)] == [("observation", 2), ("card", 2)]
    journal.close()


def test_what_a_full_disk_did_not_take_is_kept_when_there_is_room_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    sink, fault = ToldSink(path), {"event": "fault", "round": 2, "uid": 1, "what": "disk", "detail": "full"}
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TRIGGER full BEFORE INSERT ON told BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    for event in (fault, {"event": "step"}):
        with pytest.raises(LocalFault, match="disk full"):
            sink.write(event)
    with sqlite3.connect(path) as raw:
        raw.execute("DROP TRIGGER full")
    sink.write({"event": "step"})
    sink.close()
    assert [row["detail"] for row in read(books(tmp_path), "round", 2)] == ["full"]


def test_reading_leaves_nothing_behind(run: Path) -> None:
    files = sorted(run.rglob("*"))
    read(books(run), "round", 0)
    assert sorted(run.rglob("*")) == files


def test_what_cannot_be_told_is_one_line(run: Path, tmp_path: Path) -> None:
    path = run / "nodes" / "miner-0" / "journal.sqlite"

    def refused(match: str, *flags: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            main(["--run-dir", str(run), *flags])
        assert "\n" not in str(caught.value)

    refused("nothing is told of uid 77 in 2 journals", "--uid", "77")
    refused("nothing is told of round 9", "--round", "9")
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    refused("use the version that wrote it", "--uid", "5")
    path.write_bytes(b"not a database" * 100)
    refused("cannot be read as a journal", "--uid", "5")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no journal in"):
        main(["--run-dir", str(empty), "--uid", "5"])


def test_a_journal_of_an_older_program_tells_what_it_has(run: Path) -> None:
    path = run / "nodes" / "validator-0" / "journal.sqlite"
    with sqlite3.connect(path) as raw:
        raw.executescript("DROP TABLE told; PRAGMA user_version = 3;")
    assert {row["kind"] for row in read(books(path.parent), "uid", 5)} == {"round", "observation", "card"}


def test_nobody_reading_on_is_no_error(run: Path) -> None:
    command = f"'{sys.executable}' -m distributed_training.history --run-dir '{run}' --uid 5 --json --follow | head -1"
    done = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60)
    assert done.stderr == b"" and done.stdout.count(b"\n") == 1
    assert done.returncode == 141
