"""A node's own SQLite file: its rounds, what it committed in them, observations, score cards, weights and faults.

One writer process per file: `node.py` locks its folder. Every method is one transaction: after a crash the journal
holds all of it or nothing. Values are small JSON documents; bytes go in as hex. Raises LocalFault for every trouble
with the disk or the file. Methods take well under a millisecond and may be called from the event loop.

What it holds of old rounds is pruned by a budget of bytes, a round or two with each one saved. Never: score cards,
which are all that scores and weights go on from (observations are folded into them when they are saved), and what a
restarted node may ask of the newest rounds.
"""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError, LocalFault, said
from distributed_training.protocol.observed import ScoreCard

# Migration i brings the file from version i to i + 1. Never edit one that was released: append.
MIGRATIONS = (
    """
    CREATE TABLE rounds (round INTEGER PRIMARY KEY, doc TEXT NOT NULL);
    CREATE TABLE observations (round INTEGER NOT NULL, hotkey TEXT NOT NULL, doc TEXT NOT NULL,
        PRIMARY KEY (round, hotkey)) WITHOUT ROWID;
    CREATE TABLE cards (hotkey TEXT PRIMARY KEY, doc TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE cards_round (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), round INTEGER NOT NULL);
    """,
    """
    CREATE TABLE own (round INTEGER PRIMARY KEY, doc TEXT NOT NULL);
    CREATE TABLE trusted (round INTEGER PRIMARY KEY, root TEXT NOT NULL);
    """,
    "CREATE TABLE finals (block INTEGER PRIMARY KEY, hash BLOB NOT NULL, roster BLOB NOT NULL);",
    "CREATE TABLE told (id INTEGER PRIMARY KEY, round INTEGER NOT NULL, event TEXT NOT NULL, doc TEXT NOT NULL);",
)
JOURNAL = "journal.sqlite"  # in a node's folder
BUDGET_BYTES = 256 << 20
BY_ROUND = ("rounds", "observations", "own", "trusted", "told")  # tables that grow with the rounds
TOLD = ("weights", "fault")  # events that are kept
MOST_WAITING = 256  # of them, while the disk is full
MOST_TOLD = 20_000  # of them: a node in lasting trouble says so again and again


def claim_folder(folder: Path, run_sha256: str) -> None:
    """A node's folder belongs to the run whose manifest has this sha256, from the first start on.

    Snapshots and score cards do not say of which run they are. Raises ConfigError for a folder of another run.
    """
    path = folder / "manifest.sha256"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if not owner:
            path.write_text(run_sha256 + "\n", encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use {path}: {error}") from None
    if owner and owner != run_sha256:
        raise ConfigError(
            f"{folder} holds the node of another run (manifest {owner[:16]}, this one is {run_sha256[:16]}); "
            "give this run its own --run-dir, or move that folder away"
        )


class Journal:
    """See the module's docstring. `path` is created, and brought to the newest schema, if needed."""

    def __init__(self, path: Path, *, needed: int = 0, budget_bytes: int = BUDGET_BYTES) -> None:
        """needed: so many newest rounds stay whole, whatever they take."""
        self._path, self._needed, self._budget = path, needed, budget_bytes
        with self._trouble():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA journal_size_limit=4000000")
            self._migrate()

    def close(self) -> None:
        self._db.close()

    def save_round(self, round: int, doc: Any) -> None:
        """How a round went on this node; a second call replaces the first."""
        self._write(("INSERT OR REPLACE INTO rounds VALUES (?, ?)", (round, _dump(doc))), *self._too_old(round))

    def last_round(self) -> tuple[int, Any] | None:
        """The highest round saved and its document."""
        rows = self._rows("SELECT round, doc FROM rounds ORDER BY round DESC LIMIT 1", ())
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def save_own(self, round: int, doc: Any) -> None:
        """What we are about to commit in a round; a second call replaces the first."""
        self._write(("INSERT OR REPLACE INTO own VALUES (?, ?)", (round, _dump(doc))))

    def load_own(self, round: int) -> Any | None:
        return self._one("SELECT doc FROM own WHERE round = ?", (round,))

    def save_trusted(self, round: int, root: bytes) -> None:
        """The root at the start of `round` of a state with which we contribute."""
        self._write(("INSERT OR REPLACE INTO trusted VALUES (?, ?)", (round, root.hex())))

    def is_trusted(self, round: int, root: bytes) -> bool:
        return bool(self._rows("SELECT 1 FROM trusted WHERE round = ? AND root = ?", (round, root.hex())))

    def save_final(self, block: int, hash_: bytes, roster: bytes, *, oldest: int) -> None:
        """What a final block said; a roster that is known stays. Blocks from 2 to `oldest` are forgotten."""
        keep = "INSERT INTO finals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET roster = max(roster, excluded.roster)"
        self._write((keep, (block, hash_, roster)), ("DELETE FROM finals WHERE block < ? AND block > 1", (oldest,)))

    def load_final(self, block: int) -> tuple[bytes, bytes] | None:
        """(hash, roster, empty where only the hash is known)."""
        rows = self._rows("SELECT hash, roster FROM finals WHERE block = ?", (block,))
        return rows[0] if rows else None

    def final_hashes(self) -> dict[int, bytes]:
        """Of the oldest and the newest block."""
        ends = "(SELECT min(block) FROM finals UNION SELECT max(block) FROM finals)"
        return dict(self._rows(f"SELECT block, hash FROM finals WHERE block IN {ends}", ()))

    def save_told(self, event: Mapping[str, Any]) -> None:
        """An event of this node, as it was emitted."""
        row = (-1 if event["round"] is None else event["round"], event["event"], _dump(event))
        self._write(
            ("INSERT INTO told (round, event, doc) VALUES (?, ?, ?)", row),
            ("DELETE FROM told WHERE id <= (SELECT max(id) FROM told) - ?", (MOST_TOLD,)),
        )

    def load_observations(self, round: int) -> dict[str, Any]:
        """hotkey -> document, of one round."""
        rows = self._rows("SELECT hotkey, doc FROM observations WHERE round = ? ORDER BY hotkey", (round,))
        return {hotkey: json.loads(doc) for hotkey, doc in rows}

    def save_cards(
        self, round: int, cards: Mapping[str, ScoreCard], observations: Mapping[str, Any] | None = None
    ) -> None:
        """Replace all score cards by these, folded up to and including `round`, in one transaction with the
        observations (hotkey -> document) that were folded."""
        self._write(
            *(
                ("INSERT OR REPLACE INTO observations VALUES (?, ?, ?)", (round, hotkey, _dump(doc)))
                for hotkey, doc in (observations or {}).items()
            ),
            ("DELETE FROM cards", ()),
            *(("INSERT INTO cards VALUES (?, ?)", (hotkey, _dump(asdict(card)))) for hotkey, card in cards.items()),
            ("INSERT OR REPLACE INTO cards_round VALUES (1, ?)", (round,)),
            *self._too_old(round),
        )

    def load_cards(self) -> tuple[int | None, dict[str, ScoreCard]]:
        """(last folded round or None, hotkey -> card)."""
        rounds = self._rows("SELECT round FROM cards_round", ())
        rows = self._rows("SELECT hotkey, doc FROM cards ORDER BY hotkey", ())
        return (rounds[0][0] if rounds else None), {hotkey: self._card(hotkey, doc) for hotkey, doc in rows}

    def _too_old(self, newest: int) -> list[tuple[str, tuple[Any, ...]]]:
        """What takes the two oldest rounds out of a journal that is over its budget."""
        facts = [self._rows(f"PRAGMA {fact}", ())[0][0] for fact in ("page_count", "freelist_count", "page_size")]
        oldest = [self._rows(f"SELECT min(round) FROM {table} WHERE round >= 0", ())[0][0] for table in BY_ROUND[:2]]
        known = [round for round in oldest if round is not None]
        if not known or (facts[0] - facts[1]) * facts[2] <= self._budget:
            return []
        last = min(min(known) + 1, newest - self._needed)
        return [(f"DELETE FROM {table} WHERE round BETWEEN 0 AND ?", (last,)) for table in BY_ROUND]

    def _card(self, hotkey: str, doc: str) -> ScoreCard:
        try:
            fields = json.loads(doc)
            return ScoreCard(**{**fields, "work": tuple(fields["work"]), "goodput": tuple(fields["goodput"])})
        except (ValueError, TypeError, KeyError) as error:
            raise LocalFault(f"journal {self._path}: score card of {hotkey} cannot be read: {error}") from error

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise LocalFault(
                f"journal {self._path} has schema {version}, this program knows {len(MIGRATIONS)}: "
                "it was written by a newer version"
            )
        for number in range(version, len(MIGRATIONS)):
            self._db.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
            )

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        with self._trouble():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for sql, values in statements:
                    self._db.execute(sql, values)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._trouble():
            return self._db.execute(sql, values).fetchall()

    def _one(self, sql: str, values: tuple[Any, ...]) -> Any | None:
        rows = self._rows(sql, values)
        return json.loads(rows[0][0]) if rows else None

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LocalFault(f"journal {self._path}: {said(error)}") from error


class ToldSink:
    """Keeps the events that nothing else in the journal tells of. A metrics sink, with a connection of its own.

    What could not be written is tried again with every event that comes.
    """

    def __init__(self, path: Path) -> None:
        self._journal, self._waiting = Journal(path), deque[Mapping[str, Any]](maxlen=MOST_WAITING)

    def write(self, event: Mapping[str, Any]) -> None:
        if event["event"] in TOLD:
            self._waiting.append(event)
        while self._waiting:
            self._journal.save_told(self._waiting[0])
            self._waiting.popleft()

    def close(self) -> None:
        self._journal.close()


def _dump(doc: Any) -> str:
    return json.dumps(doc, separators=(",", ":"), allow_nan=False)
