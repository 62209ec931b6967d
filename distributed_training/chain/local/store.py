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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
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
    """What the chain was created with; `in_force` adds what was changed since. The first three never change."""

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
    min_allowed_weights: int = 1  # uids that a row names at least
    max_weights_limit: int = 65535  # u16 share of a row that one uid may have; 65535 = any
    stake_threshold: int = 0  # rao without which a hotkey's stake and weights do not count
    commit_reveal: bool = False  # weights are committed sealed and shown `reveal_period` epochs later
    reveal_period: int = 1
    beacon: bool = True  # False: no pulse comes, and what should be revealed is lost
    registration_allowed: bool = True
    started: bool = True  # start_call was made: alpha can be bought and is emitted
    emission_enabled: bool = True  # the pool's flag; alpha flows without it
    collateral_share: int = 0  # u16 share of a registration's price that is locked instead of burned
    spec_version: int = 0


def in_force(rows: Rows, params: ChainParams) -> ChainParams:
    """The parameters at the block of `rows`."""
    return replace(params, **rows.scan("param"))


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
        self.writing = threading.Lock()  # held by a transaction
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
        """Close every connection of this process; later use opens new ones. To be called in the thread that reads, and
        with `writing` held."""
        connections, self._connections = self._connections, []
        self._local = threading.local()
        for connection in connections:
            connection.close()

    def _meta(self, name: str) -> Any:
        row = self.connection().execute("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _set_meta(self, **values: Any) -> None:
        rows = [(json.dumps(value), name) for name, value in values.items()]
        self.connection().executemany("update meta set value = ? where name = ?", rows)

    def genesis_time(self) -> float | None:
        """Unix time of block 0; None while the clock stands: not started yet, or stopped."""
        return self._meta("genesis_time")

    def head(self) -> int:
        """The newest block that can be read; only `rewind` takes it back, the machine's clock does not."""
        genesis = self.genesis_time()
        by_clock = 0 if genesis is None else int((time.time() - genesis) / self.params.block_s)
        return max(by_clock, self._meta("closed"))

    def resume_clock(self) -> float:
        """Move block 0 so that the head is the last closed block; see genesis.resume_clock."""
        genesis = time.time() - self._meta("closed") * self.params.block_s
        self._set_meta(genesis_time=genesis)
        return genesis

    def stop_clock(self) -> None:
        """Stand at the last closed block."""
        self._set_meta(genesis_time=None)

    def rewind(self, block: int) -> None:
        """Make `block` the head of another fork; see genesis.rewind."""
        with self.transaction() as rows:
            if not 0 <= block < rows.block:
                raise ConfigError(f"expected a block in 0..{rows.block - 1} to go back to, got {block}")
            for table in ("state", "extrinsics"):
                rows.connection.execute(f"delete from {table} where block > ?", (block,))
            genesis = None if self.genesis_time() is None else time.time() - block * self.params.block_s
            self._set_meta(genesis_time=genesis, closed=block, forks=[*self._meta("forks"), block])

    def block_hash(self, block: int) -> bytes:
        return block_hash(self.params.seed, block, self._meta("forks"))

    def block_of_hash(self, value: str) -> int:
        return block_of_hash(self.params.seed, value, self._meta("forks"))

    def seconds_until(self, block: int) -> float:
        """Time until `block` is the head; 0 when it is already, or while the clock is not started."""
        genesis = self.genesis_time()
        if genesis is None:
            return 0.0
        return max(0.0, genesis + block * self.params.block_s - time.time())

    def is_closed(self, block: int) -> bool:
        """True if `block` can be read without `close_blocks`."""
        return block <= self._meta("closed")

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
        with self.writing:
            connection = self.connection()
            connection.execute("begin immediate")
            try:
                closed = self.head()
                self._set_meta(closed=closed)
                rows = FileRows(connection, closed + 1)
                self._run_due_epochs(rows, self.params)
                yield rows
                connection.execute("commit")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("rollback")
                raise

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
    meta = {**asdict(params), "genesis_time": None, "closed": 0, "forks": []}
    connection.executemany(
        "insert into meta values (?, ?)", [(name, json.dumps(value)) for name, value in meta.items()]
    )
    return connection


def block_hash(seed: int, block: int, forks: Sequence[int] = ()) -> bytes:
    """32 bytes: 24 of sha256("seed:block"), then the block number, so that a hash names its block. Predictable.

    `forks` are the blocks the chain was taken back to; each gave the blocks behind it other hashes.
    """
    again = sum(cut < block for cut in forks)
    return sha256(f"{seed}:{block}{f':{again}' * bool(again)}".encode()).digest()[:24] + block.to_bytes(8, "big")


def block_of_hash(seed: int, value: str, forks: Sequence[int] = ()) -> int:
    """The block a hash names, or NO_SUCH_BLOCK if it is not a hash of this chain as it is now."""
    try:
        raw = bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        return NO_SUCH_BLOCK
    block = int.from_bytes(raw[24:], "big") if len(raw) == 32 else NO_SUCH_BLOCK
    return block if block >= 0 and block_hash(seed, block, forks) == raw else NO_SUCH_BLOCK
