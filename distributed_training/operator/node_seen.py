"""What a node's folder tells of it, while it runs or after: its lock, the end of its event file, its journal.

Only read, as a reader whose transactions are short; the lock is looked at and not tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError, on_one_line
from distributed_training.journal import JOURNAL
from distributed_training.locks import Holder, holder
from distributed_training.metrics.following import event_of, lines_of
from distributed_training.operator.history import Book, Row

TAIL_BYTES, HEAD_BYTES = 4 << 20, 1 << 16  # of the event file that are read
NEWEST = 8  # rounds and audits

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trouble:
    """The node's newest fault. ended_s: Unix time of the first round after it that went without; None: not yet."""

    what: str
    detail: str
    round: int | None
    time_s: float
    ended_s: float | None


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """None: not known. Times are Unix seconds. Of phase and end only the process that has the folder now is asked."""

    name: str
    problem: str = ""  # why not all of it could be read
    process: Holder | None = None  # that has the folder, or had it last
    alive: bool = False
    role: str | None = None
    uid: int | None = None
    hotkey: str | None = None
    version: str | None = None
    run: str | None = None  # sha256 of the manifest
    stopped: str | None = None  # why it ended by itself
    start_round: int | None = None
    round: int | None = None
    phase: str | None = None
    phase_since_s: float | None = None
    fetched: float | None = None  # share of the state that it fetches before its first phase
    seen_s: float | None = None
    fault: Trouble | None = None
    rounds: tuple[Row, ...] = ()  # of its journal, oldest first; see `history`
    audits: tuple[Row, ...] = ()  # observations of it by validators on this machine, newest first


def node_seen(folder: Path) -> NodeSeen:
    """Never raises for what lies in the folder."""
    process, problem, rows = holder(folder), "", list[Row]()
    head, tail = list[Event](), list[Event]()
    try:
        head, tail = _ends(folder / "events.jsonl")
    except OSError as error:
        problem = f"its events cannot be read: {error.strerror}"
    uid = next((e["uid"] for e in reversed(head + tail) if isinstance(e.get("uid"), int)), None)
    try:
        rows = [] if uid is None else _newest(folder, uid, "round")
    except ConfigError as error:
        problem = str(error)
    fields = _told(tail, head, 0.0 if process is None else process.since.timestamp())
    return NodeSeen(
        name=folder.name,
        problem=on_one_line(problem),
        process=process,
        alive=process is not None and process.lives,
        uid=uid,
        run=_run(folder),
        fault=fault_of(tail),
        rounds=tuple(reversed(rows)),
        audits=() if uid is None else audits_of(folder.parent, uid),
        **fields,
    )


def audits_of(nodes: Path, uid: int) -> tuple[Row, ...]:
    """By the validators among these nodes. A journal that cannot be read tells of itself elsewhere."""
    found = list[Row]()
    for folder in nodes.iterdir():
        with suppress(ConfigError):
            found += [row for row in _newest(folder, uid, "observation") if row["verdict"] is not None]
    return tuple(sorted(found, key=lambda row: (-row["round"], row["node"]))[:NEWEST])


def fault_of(events: Sequence[Event]) -> Trouble | None:
    """The newest fault: over when a round that began after it is settled; one of weights, when they are set."""
    place = next((n for n in reversed(range(len(events))) if events[n]["event"] == "fault"), None)
    if place is None:
        return None
    fault, began = events[place], set[Any]()
    what, ended = _text(fault.get("what")) or "", None
    for event in events[place + 1 :]:
        if event["event"] == "phase" and event.get("phase") == "train":
            began.add(event.get("round"))
        settled = event["event"] == "round" and event.get("round") in began
        if event["event"] == "weights" if what == "weights" else settled:
            ended = _number(event.get("time"))
            break
    return Trouble(what, _text(fault.get("detail")) or "", fault.get("round"), _number(fault.get("time")) or 0.0, ended)


def _told(tail: Sequence[Event], head: Sequence[Event], since_s: float) -> dict[str, Any]:
    """By the newest event of each kind."""
    newest = {event["event"]: event for event in [*head, *tail]}
    own = {event["event"]: event for event in tail if (_number(event.get("time")) or 0.0) >= since_s - 1.0}
    ready, phase, last = own.get("ready", {}), own.get("phase", {}), tail[-1] if tail else {}
    return {
        "role": _text(last.get("role")),
        "hotkey": _text(newest.get("ready", {}).get("hotkey")),
        "version": _text(newest.get("ready", {}).get("version")),
        "stopped": _text(own.get("stopped", {}).get("reason")),
        "start_round": _number(ready.get("start_round")),
        "round": phase.get("round"),
        "phase": _text(phase.get("phase")),
        "phase_since_s": _number(phase.get("time")),
        "fetched": None if ready else _number(own.get("sync", {}).get("share")),
        "seen_s": _number(last.get("time")),
    }


def _newest(folder: Path, uid: int, kind: str) -> list[Row]:
    """Newest first. Raises ConfigError."""
    if not (folder / JOURNAL).exists():
        return []
    rows = Book(folder / JOURNAL, folder.name, uid if kind == "round" else None).news("uid", uid, NEWEST)
    return [row for row in rows if row["kind"] == kind]


def _ends(path: Path) -> tuple[list[Event], list[Event]]:
    """(events at its beginning, where that is another part; those at its end). Raises OSError."""
    if not path.exists():
        return [], []
    with path.open("rb") as file:
        start = max(0, file.seek(0, 2) - TAIL_BYTES)
        file.seek(0)
        head = file.read(min(start, HEAD_BYTES))
        file.seek(start)
        return list(_events(head)), list(_events(file.read(TAIL_BYTES)))


def _events(data: bytes) -> Iterator[Event]:
    """Of whole lines: half a one at either end is no event."""
    return (event for _, line in lines_of(data) if (event := event_of(line)) is not None)


def _run(folder: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return _text((folder / "manifest.sha256").read_text(encoding="ascii").strip())
    return None


def _text(value: Any) -> str | None:
    return on_one_line(value[:400]) if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
