"""One node as the launcher sees it: how to start it in a version, and what its own files tell. Nothing is written there
but update.json, for `status`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from auto_update.bounded import run
from auto_update.state import Before
from auto_update.trouble import Trouble, Wrong

ASK_S = 120.0
TAIL_BYTES = 8 << 20
JOURNAL, EVENTS, LOCK = "journal.sqlite", "events.jsonl", "lock"


@dataclass(frozen=True, slots=True)
class Base:
    """The checkout that the operator made, and the Python of its environment: the version before the first update."""

    path: Path
    python: Path

    def python_of(self, version: Path) -> Path:
        return self.python if version == self.path else version / ".venv" / "bin" / "python"


def environment_of(version: Path, python: Path) -> dict[str, str]:
    bin_ = str(python.parent)
    ours = ("PYTHONHOME", "WATCHDOG_PID", "DT_VENV", "DT_AUTO_UPDATE", "DT_UPDATE_URL", "DT_UPDATE_HOURS")
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return kept | {
        "PYTHONPATH": str(version),
        "VIRTUAL_ENV": str(python.parent.parent),
        "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def command(version: Path, python: Path, words: Sequence[str]) -> list[str]:
    """words: the role and its settings."""
    return [str(python), str(version / "neurons" / f"{words[0]}.py"), *words[1:]]


@dataclass(frozen=True, slots=True)
class Where:
    """What a version makes of the node's settings."""

    name: str
    hotkey: str
    run_dir: str  # with a * for a run that is still to be found
    open: bool
    folder: str
    json_lines: bool

    def node_dirs(self) -> list[Path]:
        """Those that are there, the one that was used last first."""
        run = Path(self.run_dir)
        runs = run.parent.glob("*") if self.open else [run]
        found = [path / self.folder for path in runs if (path / self.folder / LOCK).is_file()]
        return sorted(found, key=lambda path: (path / LOCK).stat().st_mtime, reverse=True)


def ask_where(version: Path, python: Path, words: Sequence[str]) -> Where:
    """Raises Wrong, with the version's own line, for settings it does not take."""
    script = version / "scripts" / "update" / "where.py"
    done = run((python, script, *words), timeout_s=ASK_S, environment=environment_of(version, python))
    if done.code:
        raise Wrong(done.said)
    try:
        return Where(**json.loads(done.out))
    except (ValueError, TypeError):
        raise Trouble(f"{script} gives no answer that the launcher reads") from None


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node has reached. None: not known."""

    last_round: int | None = None
    spec_version: int | None = None
    word: str | None = None  # the newest verdict: all well, the run, the chain, not known
    word_time: float = 0.0  # Unix seconds of it
    round_s: float | None = None

    def before(self) -> Before:
        return Before(self.last_round, self.spec_version, self.round_s)


def look(node: Path | None) -> Seen:
    """From its journal and the end of its event file, read only. What cannot be read is not known."""
    if node is None:
        return Seen()
    rounds, verdict = list[float](), dict[str, Any]()
    for line in _tail(node / EVENTS):
        if b'"event":"round"' not in line and b'"event":"verdict"' not in line:
            continue
        with suppress(ValueError, TypeError, KeyError):
            event = json.loads(line)
            if event["event"] == "round":
                rounds.append(float(event["time"]))
            elif event["event"] == "verdict":
                verdict = event
    gaps = sorted(later - earlier for earlier, later in zip(rounds[-8:], rounds[-7:], strict=False))
    spec = verdict.get("spec_version")
    return Seen(
        last_round=_last_round(node / JOURNAL),
        spec_version=spec if isinstance(spec, int) else None,
        word=str(verdict["word"]) if "word" in verdict else None,
        word_time=float(verdict.get("time", 0.0)),
        round_s=gaps[len(gaps) // 2] if gaps else None,
    )


def admitted_protocol(node: Path | None) -> int:
    """The protocol version of the run this node is in, by its manifest. Raises Trouble while there is none."""
    if node is None:
        raise Trouble("no update is looked for before the node has found its run")
    path = node.parent.parent / "manifest.json"
    try:
        version = json.loads(path.read_bytes())["protocol_version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Trouble(f"no update is looked for: {path} does not say the protocol of the run") from None
    return int(version)


def _tail(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - TAIL_BYTES))
            return file.read(TAIL_BYTES).splitlines()
    except OSError:
        return []


def _last_round(journal: Path) -> int | None:
    with suppress(sqlite3.Error), closing(sqlite3.connect(_read_only(journal), uri=True)) as db:
        return db.execute("SELECT max(round) FROM rounds").fetchone()[0]
    return None


def keep_journal(node: Path, copy: Path) -> None:
    """While the node is not running. Raises OSError."""
    partial = copy.with_name(f"{copy.name}.part")
    for old in (partial, copy):
        old.unlink(missing_ok=True)
    if not (node / JOURNAL).is_file():
        return
    try:
        with (
            closing(sqlite3.connect(_read_only(node / JOURNAL), uri=True)) as db,
            closing(sqlite3.connect(partial)) as to,
        ):
            db.backup(to)
    except sqlite3.Error as error:
        raise OSError(errno.EIO, f"the journal could not be kept ({error})", str(partial)) from None
    partial.replace(copy)


def return_journal(node: Path, copy: Path) -> None:
    """Puts the copy back if the newer version brought the journal to a schema that the former does not read. Raises
    OSError."""
    now, then = _schema(node / JOURNAL), _schema(copy)
    if now is None or then is None or now <= then:
        return
    for ending in ("-wal", "-shm"):
        (node / f"{JOURNAL}{ending}").unlink(missing_ok=True)
    partial = node / f"{JOURNAL}.part"
    shutil.copyfile(copy, partial)
    partial.replace(node / JOURNAL)


def _schema(journal: Path) -> int | None:
    with suppress(sqlite3.Error), closing(sqlite3.connect(_read_only(journal), uri=True)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]
    return None


def _read_only(journal: Path) -> str:
    return f"file:{quote(str(journal))}?mode=ro"
