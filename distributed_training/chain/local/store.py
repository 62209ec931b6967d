"""The local chain's file: rows by block, the clock, and the rule that makes past blocks immutable.

One row = (item, key, block, JSON value); a read as of block B takes the newest row with block <= B. Blocks are cut by
the clock: head = floor((now - genesis) / block_s). A write goes to block head + 1, never into a block that can be read.

A block is **closed** before anybody reads it. Closing takes the write lock, so whoever still wrote into that block has
committed before, and whoever comes later sees `closed` and writes further on; epochs that are due run under the same
lock. So a closed block never changes, whatever the scheduler does to the processes that share the file.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from distributed_training.errors import ConfigError, LocalFault

FINALITY_BLOCKS = 2
LOCK_WAIT_S = 30.0
NO_SUCH_BLOCK = -1

SCHEMA = """
create table meta (name text primary key, value text) without rowid;
create table state (item text, key text, block integer, value text, primary key (item, key, block)) without rowid;
create table extrinsics (block integer, idx integer, signer text, call text, primary key (block, idx)) without rowid;
"""


@dataclass(frozen=True, slots=True)
class ChainParams:
    """What the chain was created with; constant for its life."""

    seed: int
    block_s: float
    netuid: int
    tempo: int
    weights_rate_limit: int  # blocks between two weight sets of one hotkey
    version_key: int  # smallest weights version accepted; 0 = any
    max_uids: int
    max_validators: int
    serving_rate_limit: int  # blocks between two changes of one address
    immunity_period: int  # blocks in which a fresh uid is not recycled
    burn_rao: int  # price of a registration
    owner_hotkey: str
    owner_coldkey: str


class Rows(Protocol):
    """State as of one block; the rules of the chain (epochs, calls) know nothing else. Values are JSON values."""

    @property
    def block(self) -> int: ...

    def get(self, item: str, key: str, default: Any = None) -> Any:
        """Newest value at or before the block; `default` when there is none or it was removed."""
        ...

    def scan(self, item: str) -> dict[str, Any]:
        """All keys of one item with their newest values, in key order; removed ones are left out."""
        ...

    def put(self, item: str, key: str, value: Any) -> None:
        """Write at exactly this block; None removes."""
        ...

    def as_of(self, block: int) -> Rows: ...


@dataclass(frozen=True, slots=True)
class FileRows:
    """Rows of the chain file, inside one connection."""

    connection: sqlite3.Connection
    block: int

    def get(self, item: str, key: str, default: Any = None) -> Any:
        row = self.connection.execute(
            "select value from state where item = ? and key = ? and block <= ? order by block desc limit 1",
            (item, key, self.block),
        ).fetchone()
        value = None if row is None else json.loads(row[0])
        return default if value is None else value

    def scan(self, item: str) -> dict[str, Any]:
        rows = self.connection.execute(
            "select key, value, max(block) from state where item = ? and block <= ? group by key", (item, self.block)
        ).fetchall()
        values = {key: json.loads(value) for key, value, _ in rows}
        return {key: value for key, value in values.items() if value is not None}

    def put(self, item: str, key: str, value: Any) -> None:
        self.connection.execute(
            "insert or replace into state values (?, ?, ?, ?)", (item, key, self.block, json.dumps(value))
        )

    def as_of(self, block: int) -> FileRows:
        return FileRows(self.connection, block)


RunDueEpochs = Callable[[Rows, ChainParams], None]


class LocalStore:
    """One process's handle on the chain file; safe in threads (one connection each). Open it after a fork."""

    def __init__(self, path: Path, run_due_epochs: RunDueEpochs) -> None:
        if not path.is_file():
            raise ConfigError(f"no local chain at {path}; expected the chain.sqlite of a run directory")
        self.path = path
        self._run_due_epochs = run_due_epochs
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._writing = threading.Lock()  # so that `close` never pulls a connection from under a transaction
        self._genesis: float | None = None
        self._closed = 0
        try:
            self.params = ChainParams(**{f.name: self._meta(f.name) for f in fields(ChainParams)})
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is not a local chain: {error}") from error

    def connection(self) -> sqlite3.Connection:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection = open_file(self.path)
            self._local.pid = os.getpid()
            self._connections.append(self._local.connection)
        return self._local.connection

    def close(self) -> None:
        """Close every connection of this process, after a running transaction; later use opens new ones."""
        with self._writing:
            connections, self._connections = self._connections, []
            self._local = threading.local()
            for connection in connections:
                connection.close()

    def _meta(self, name: str) -> Any:
        row = self.connection().execute("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def genesis_time(self) -> float | None:
        """Unix time of block 0; None while the clock is not started."""
        if self._genesis is None:
            self._genesis = self._meta("genesis_time")
        return self._genesis

    def head(self) -> int:
        """The newest block that can be read; never goes back, even if the machine's clock does."""
        genesis = self.genesis_time()
        by_clock = 0 if genesis is None else int((time.time() - genesis) / self.params.block_s)
        return max(by_clock, self._closed)

    def resume_clock(self) -> float:
        """Move block 0 so that the head is the last closed block; see local_genesis.resume_clock."""
        genesis = time.time() - self._meta("closed") * self.params.block_s
        self.connection().execute("update meta set value = ? where name = 'genesis_time'", (json.dumps(genesis),))
        self._genesis = genesis
        return genesis

    def seconds_until(self, block: int) -> float:
        """Time until `block` is the head; 0 when it is already, or while the clock is not started."""
        genesis = self.genesis_time()
        if genesis is None:
            return 0.0
        return max(0.0, genesis + block * self.params.block_s - time.time())

    def is_closed(self, block: int) -> bool:
        """True if `block` can be read without `close_blocks`. Cheap: usually a comparison."""
        if block > self._closed:
            self._closed = max(self._closed, self._meta("closed"))
        return block <= self._closed

    def close_blocks(self) -> None:
        """Close every block up to the head. Waits for writers: call it off the event loop."""
        with self.transaction():
            pass

    def rows(self, block: int) -> FileRows:
        """State as of a closed block."""
        if not self.is_closed(block):
            raise LocalFault(f"block {block} of the local chain is read before it is closed")
        return FileRows(self.connection(), block)

    @contextmanager
    def transaction(self) -> Iterator[FileRows]:
        """Rows of the next block under the write lock: committed at the end, rolled back if the body raises.

        All blocks up to the head are closed first, and epochs due up to the next block run.
        """
        with self._writing:
            connection = self.connection()
            connection.execute("begin immediate")
            try:
                self._closed = max(self._closed, self._meta("closed"))
                closed = self.head()
                connection.execute("update meta set value = ? where name = 'closed'", (json.dumps(closed),))
                rows = FileRows(connection, closed + 1)
                self._run_due_epochs(rows, self.params)
                yield rows
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise
            self._closed = max(self._closed, closed)

    def record_extrinsic(self, rows: FileRows, signer: str, call: dict[str, Any]) -> str:
        """Append to the block's list; returns the extrinsic id `<block>-<index>`."""
        (count,) = rows.connection.execute("select count(*) from extrinsics where block = ?", (rows.block,)).fetchone()
        rows.connection.execute(
            "insert into extrinsics values (?, ?, ?, ?)", (rows.block, count, signer, json.dumps(call))
        )
        return f"{rows.block}-{count:04d}"

    def extrinsics(self, block: int) -> list[dict[str, Any]]:
        rows = self.connection().execute("select signer, call from extrinsics where block = ? order by idx", (block,))
        return [{"signer": signer, "call": json.loads(call)} for signer, call in rows.fetchall()]


def open_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = normal")
    connection.execute("pragma journal_size_limit = 16777216")
    return connection


def create_file(path: Path, params: ChainParams) -> sqlite3.Connection:
    """A new chain file with its constants and the clock not started; refuses to overwrite."""
    if path.exists():
        raise ConfigError(f"{path} exists already; expected a path for a new local chain")
    connection = open_file(path)
    connection.executescript(SCHEMA)
    meta = {**asdict(params), "genesis_time": None, "closed": 0}
    connection.executemany(
        "insert into meta values (?, ?)", [(name, json.dumps(value)) for name, value in meta.items()]
    )
    return connection


def block_hash(seed: int, block: int) -> bytes:
    """32 bytes: 24 of sha256("seed:block"), then the block number, so that a hash names its block. Predictable."""
    return sha256(f"{seed}:{block}".encode()).digest()[:24] + block.to_bytes(8, "big")


def block_of_hash(seed: int, value: str) -> int:
    """The block a hash names, or NO_SUCH_BLOCK if it is not a hash of this chain."""
    try:
        raw = bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        return NO_SUCH_BLOCK
    block = int.from_bytes(raw[24:], "big") if len(raw) == 32 else NO_SUCH_BLOCK
    return block if block >= 0 and block_hash(seed, block) == raw else NO_SUCH_BLOCK
