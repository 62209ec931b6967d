from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import CAP, SCORING

from distributed_training.errors import ConfigError, LocalFault
from distributed_training.journal import MIGRATIONS, MOST_TOLD, Journal, claim_folder
from distributed_training.protocol.observed import AuditResult, Observation, ScoreCard, Verdict
from distributed_training.protocol.rules.scoring import fold, fold_absent

CARD = ScoreCard(
    hotkey="5F",
    registered_block=3,
    uid=1,
    work=(0.5, 0.1 + 0.2),
    steps=0.1 + 0.2,
    passes=1.5,
    fails=0.0,
    integrity=None,
    goodput=(1e6, 2.5e6),
    passed_audit=True,
    zero_until_round=0,
    reason="",
    note="pass",
)


def test_cards_survive_a_restart_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.sqlite"
    journal = Journal(path)
    assert journal.load_cards() == (None, {})
    cards = {"5F": CARD, "5G": replace(CARD, hotkey="5G", integrity=1 / 3, goodput=())}
    journal.save_cards(4, cards)
    journal.close()
    assert Journal(path).load_cards() == (4, cards)


def test_saving_cards_replaces_all_of_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.save_cards(1, {"5F": CARD, "5G": replace(CARD, hotkey="5G")})
    journal.save_cards(2, {"5G": replace(CARD, hotkey="5G", uid=9)})
    assert journal.load_cards() == (2, {"5G": replace(CARD, hotkey="5G", uid=9)})


def test_a_failure_in_the_middle_of_saving_cards_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.save_cards(1, {"5F": CARD})
    other = sqlite3.connect(tmp_path / "j")
    other.execute(
        "CREATE TRIGGER full BEFORE INSERT ON cards WHEN NEW.hotkey = '5Z' BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    other.commit()
    with pytest.raises(LocalFault, match="disk full"):
        journal.save_cards(2, {"5A": replace(CARD, hotkey="5A"), "5Z": replace(CARD, hotkey="5Z")})
    assert journal.load_cards() == (1, {"5F": CARD})
    journal.save_round(2, {})  # the connection is usable afterwards


def test_rounds_and_observations(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    assert journal.last_round() is None
    journal.save_round(9, {"applied": True})
    journal.save_round(10, {"applied": False})
    journal.save_round(10, {"applied": True})
    assert journal.last_round() == (10, {"applied": True})
    journal.save_cards(9, {}, {"5F": {"duty": None}})
    journal.save_cards(10, {}, {"5F": {"duty": 1.0}})
    assert journal.load_observations(9) == {"5F": {"duty": None}}


def test_values_that_json_cannot_hold_are_refused_not_stored(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with pytest.raises(ValueError, match="JSON"):
        journal.save_round(1, {"loss": float("nan")})
    assert journal.last_round() is None


def test_a_file_of_an_older_schema_is_brought_forward_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).close()
    Journal(path).close()  # opening again migrates nothing
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(LocalFault, match="newer version"):
        Journal(path)


def test_a_file_that_is_no_database_is_a_local_fault(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LocalFault, match="not a database"):
        Journal(path)


def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from distributed_training.journal import Journal\n"
        "j = Journal(pathlib.Path(sys.argv[1])); j.save_round(3, {'applied': True}); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "j")], timeout=60)
    assert Journal(tmp_path / "j").last_round() == (3, {"applied": True})


def test_a_folder_belongs_to_the_run_that_used_it_first(tmp_path: Path) -> None:
    folder = tmp_path / "nodes" / "miner-0"
    for _ in range(2):
        claim_folder(folder, "ab" * 32)
    with pytest.raises(ConfigError, match="another run") as caught:
        claim_folder(folder, "cd" * 32)
    message = str(caught.value)
    assert str(folder) in message and "--run-dir" in message and "\n" not in message
    claim_folder(folder, "ab" * 32)  # the refusal changed nothing


@pytest.mark.parametrize("cut_off", [b"", b"\n"])
def test_a_claim_that_was_cut_off_is_made_again(tmp_path: Path, cut_off: bytes) -> None:
    (tmp_path / "manifest.sha256").write_bytes(cut_off)
    claim_folder(tmp_path, "ab" * 32)
    with pytest.raises(ConfigError, match="another run"):
        claim_folder(tmp_path, "cd" * 32)


def test_a_claim_that_cannot_be_read_is_the_operators_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"manifest\.sha256"):
        claim_folder(tmp_path, "ab" * 32)


def observed(round: int, quality: float) -> Observation:
    audit = AuditResult(Verdict.PASS if quality > 0.2 else Verdict.FAIL, quality, 2, None, 0.1, "ok")
    return Observation(5, "5F", 0, round, 1000.0 * quality, audit, 1e6 * (1 + quality), quality)


def rounds_told(path: Path, table: str) -> set[int]:
    with sqlite3.connect(path) as raw:
        return {row[0] for row in raw.execute(f"SELECT round FROM {table}")}


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.none() | st.floats(0, 1), st.booleans()), min_size=20, max_size=30),
    st.integers(1, 8),
)
def test_pruning_takes_old_rounds_and_never_what_scores_or_a_restart_go_on_from(
    tmp_path_factory: pytest.TempPathFactory, course: list[tuple[int, float | None, bool]], needed: int
) -> None:
    """Rounds with gaps, a miner that is there or not, restarts in between; a budget of a few rounds."""
    path, index, kept = tmp_path_factory.mktemp("pruned") / "j", 0, None
    journal, rounds = Journal(path, needed=needed, budget_bytes=100_000), list[int]()
    for step, quality, restart in course:
        index += step
        rounds.append(index)
        loaded = journal.load_cards()[1].get("5F")
        assert loaded == kept
        if quality is not None:
            kept = fold(kept, observed(index, quality), SCORING, CAP)
            loaded = fold(loaded, observed(index, quality), SCORING, CAP)
        elif kept is not None and loaded is not None:
            kept, loaded = fold_absent(kept, index, SCORING), fold_absent(loaded, index, SCORING)
        assert loaded == kept
        journal.save_own(index, {"work": "ab" * 32})
        journal.save_trusted(index, bytes([index]) * 32)
        journal.save_final(index, b"hash", b"roster", oldest=0)
        journal.save_round(index, {"text": "x" * 9000})
        journal.save_cards(index, {} if loaded is None else {"5F": loaded}, {"5F": {"text": "x" * 9000}})
        journal.save_told({"event": "weights", "round": index, "uid": 1, "weights": {"5": 1.0}})
        if restart:
            journal.close()
            journal = Journal(path, needed=needed, budget_bytes=100_000)
        newest = [r for r in rounds if r > index - needed]
        assert all(journal.load_own(r) is not None and journal.is_trusted(r, bytes([r]) * 32) for r in newest)
        assert all(journal.load_final(r) is not None for r in rounds)
        assert rounds_told(path, "rounds") >= set(newest)
    left = rounds_told(path, "observations")
    assert left == rounds_told(path, "rounds") == rounds_told(path, "told") and left < set(rounds)
    assert left == {r for r in rounds if r >= min(left)}  # the newest, without a gap
    assert len(left) <= max(needed, 6)
    journal.close()


def test_lasting_trouble_does_not_fill_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    with sqlite3.connect(tmp_path / "j") as raw:
        raw.execute("INSERT INTO told VALUES (?, 0, 'fault', '{}')", (MOST_TOLD + 5,))
    for _ in range(3):
        journal.save_told({"event": "fault", "round": None, "uid": 1, "what": "disk", "detail": "full"})
    journal.save_told({"event": "fault", "round": 3, "uid": 1, "what": "disk", "detail": "full"})
    with sqlite3.connect(tmp_path / "j") as raw:
        raw.execute("INSERT INTO told VALUES (2, 0, 'fault', '{}')")
    journal.save_told({"event": "fault", "round": 3, "uid": 1, "what": "disk", "detail": "full"})
    with sqlite3.connect(tmp_path / "j") as raw:
        assert raw.execute("SELECT min(id), count(*) FROM told").fetchone() == (MOST_TOLD + 5, 6)
