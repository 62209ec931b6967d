"""What journals of nodes hold, as flat rows: read beside the nodes that write them, and never written.

Kinds: `round` (how it went on this node), `observation` (what a validator saw of a miner, with its audit), `weight`
(the share of a validator's weights on chain that a miner has), `fault` (of the node that tells of it), `card` (a
validator's newest score card). A row's `uid` is the miner it is about, or the node itself. Absent is None.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distributed_training.errors import ConfigError, said
from distributed_training.journal import JOURNAL, MIGRATIONS

HEAD = ("kind", "round", "node", "uid", "time")
FIELDS = {
    "round": ("applied", "reason", "included", "credit", "steps", "tokens", "bytes_sent", "bytes_received",
              "state_root"),
    "observation": ("verdict", "reason", "depth", "error", "quality", "failed_step", "credited_tokens",
                    "goodput_bytes_per_s", "duty"),
    "weight": ("weight", "block"),
    "fault": ("what", "detail"),
    "card": ("steps_term", "passes", "fails", "integrity", "zero_until_round", "reason", "note"),
}  # fmt: skip
COLUMNS = (*HEAD, *dict.fromkeys(name for names in FIELDS.values() for name in names))

TOLD_SINCE = 4  # schema; older journals tell of neither weights nor faults

Row = dict[str, Any]


Key = Literal["uid", "round"]


@dataclass(slots=True)
class Book:
    """One node's journal; `news` gives what it has not given before of one uid, or of one round."""

    path: Path
    node: str
    uid: int | None = None
    _given: set[tuple[Any, ...]] = field(default_factory=set)

    def news(self, key: Key, number: int, last: int = -1) -> list[Row]:
        """last: of each kind only so many, those of the newest rounds first. Raises ConfigError for a file that is no
        journal, or one that a newer program wrote."""
        try:
            with closing(read_only(self.path)) as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version > len(MIGRATIONS):
                    raise ConfigError(
                        f"{self.path} has schema {version}, this program knows {len(MIGRATIONS)}: "
                        "use the version that wrote it"
                    )
                self.uid = _own_uid(self.path) if self.uid is None else self.uid
                rows = [row for row in self._rows(db, key, number, version, last) if row[key] == number]
        except (sqlite3.Error, OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.path} cannot be read as a journal: {said(error)}") from None
        fresh = [row for row in rows if tuple(row.values()) not in self._given]
        self._given |= {tuple(row.values()) for row in fresh}
        return fresh

    def _rows(self, db: sqlite3.Connection, key: Key, number: int, version: int, last: int) -> Iterator[Row]:
        at = f"WHERE round = {number:d}" if key == "round" else ""
        newest = "" if last < 0 else f"ORDER BY round DESC LIMIT {last:d}"
        for index, doc in db.execute(f"SELECT round, doc FROM rounds {at} {newest}"):
            yield from self._round(index, json.loads(doc), self.uid if key == "round" else number)
        who = at or f"WHERE json_extract(doc, '$.uid') = {number:d}"
        for index, doc in db.execute(f"SELECT round, doc FROM observations {who} {newest}"):
            seen = json.loads(doc)
            yield self._row("observation", index, seen["uid"], seen | (seen["audit"] or {"reason": "not audited"}))
        for index, doc in db.execute(f"SELECT cards_round.round, doc FROM cards, cards_round {at}"):
            card = json.loads(doc)
            yield self._row("card", index, card["uid"], card | {"steps_term": card["steps"]})
        for (doc,) in db.execute(f"SELECT doc FROM told {at} {newest}") if version >= TOLD_SINCE else ():
            event = json.loads(doc)
            if event["event"] == "fault":
                yield self._row("fault", event["round"], event["uid"], event)
            for uid, share in event.get("weights", {}).items():
                yield self._row("weight", event["round"], int(uid), event | {"weight": share})

    def _round(self, index: int, doc: Mapping[str, Any], uid: int | None) -> Iterator[Row]:
        """Of the node itself, or of another uid where the node knows of it."""
        credit, worked = doc["credit"].get(str(uid)), uid == self.uid and doc["own_tokens"] is not None
        included = uid in doc["included"] if worked or credit is not None else None  # of who does not train, neither
        about = {"included": included, "credit": credit, "tokens": doc["own_tokens"]}
        if uid != self.uid:
            about |= {"tokens": doc["tokens"].get(str(uid)), "steps": None, "bytes_sent": None, "bytes_received": None}
        if uid == self.uid or credit is not None:
            yield self._row("round", index, uid, {**doc, **about})

    def _row(self, kind: str, index: int | None, uid: int | None, doc: Mapping[str, Any]) -> Row:
        head = {"kind": kind, "round": index, "node": self.node, "uid": uid, "time": doc.get("time")}
        return head | {name: doc.get(name) for name in FIELDS[kind]}


def books(folder: Path) -> list[Book]:
    """The journals of a run directory's nodes, or that of one node's folder. Raises ConfigError when there is none."""
    if (folder / JOURNAL).is_file():
        return [Book(folder / JOURNAL, folder.absolute().name)]
    found = sorted(folder.glob(f"nodes/*/{JOURNAL}"))
    if not found:
        raise ConfigError(f"no journal in {folder}: expected {JOURNAL} there (a node), or nodes/NAME/{JOURNAL} (a run)")
    return [Book(path, path.parent.name) for path in found]


def read(books: list[Book], key: Key, number: int) -> list[Row]:
    """What none of them has given before, by round. Of a uid the rounds are told by its own node, else by the first."""
    rows = [row for book in books for row in book.news(key, number)]
    if key == "uid":
        teller = next((book for book in books if book.uid == number), books[0]).node
        rows = [row for row in rows if row["kind"] != "round" or row["node"] == teller]
    order = list(FIELDS)
    return sorted(rows, key=lambda row: (-1 if row["round"] is None else row["round"], order.index(row["kind"])))


def read_only(path: Path) -> sqlite3.Connection:
    """Nothing is written, not even the files beside it: without those no process has it open."""
    mode = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5)


def _own_uid(path: Path) -> int | None:
    """As the node's first event says."""
    try:
        with path.with_name("events.jsonl").open("rb") as file:
            uid = json.loads(file.readline(1 << 16)).get("uid")
    except (OSError, ValueError, AttributeError):
        return None
    return uid if isinstance(uid, int) else None
