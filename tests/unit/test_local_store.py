"""The rule of the local chain's file: a block that can be read never changes, however slow its writers are."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.chain.local.state import empty_epoch, write_epoch
from distributed_training.chain.local.store import (
    NO_SUCH_BLOCK,
    ChainParams,
    FileRows,
    LocalStore,
    block_hash,
    block_of_hash,
    create_file,
)
from distributed_training.errors import LocalFault

PARAMS = ChainParams(1, 0.05, 1, 1000, 0, 0, 4, 4, 0, 0, 0, "hot", "cold")


def make_store(path: Path, started: bool = True) -> LocalStore:
    connection = create_file(path, PARAMS)
    write_epoch(FileRows(connection, 0), empty_epoch([]))
    if started:
        connection.execute("update meta set value = ? where name = 'genesis_time'", (json.dumps(time.time()),))
    connection.close()
    return open_store(path)


def open_store(path: Path) -> LocalStore:
    return LocalStore(path, lambda rows, params: None)


def wait_until(store: LocalStore, block: int) -> None:
    while store.head() < block:
        time.sleep(0.005)


def test_a_writer_slower_than_its_block_is_waited_for_by_readers(tmp_path: Path) -> None:
    writer, reader = make_store(tmp_path / "c"), open_store(tmp_path / "c")
    opened, block = threading.Event(), 0

    def write_slowly() -> None:
        nonlocal block
        with writer.transaction() as rows:
            block = rows.block
            opened.set()
            wait_until(reader, block + 2)  # the clock passes the block it writes into
            rows.put("item", "key", "late")
        writer.close()

    thread = threading.Thread(target=write_slowly)
    thread.start()
    assert opened.wait(10)
    wait_until(reader, block)
    reader.close_blocks()
    assert reader.rows(block).get("item", "key") == "late"
    thread.join()
    reader.close()


def test_whoever_comes_after_a_reader_writes_further_on(tmp_path: Path) -> None:
    store, other = make_store(tmp_path / "c"), open_store(tmp_path / "c")
    wait_until(store, 2)
    store.close_blocks()
    assert store.is_closed(2)
    with other.transaction() as rows:
        assert rows.block >= 3
    assert other.is_closed(2)


def test_a_clock_set_back_moves_no_head_and_no_write_back(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c")
    wait_until(store, 3)
    store.close_blocks()
    with sqlite3.connect(tmp_path / "c") as connection:
        later = json.dumps(time.time() + 3600)
        connection.execute("update meta set value = ? where name = 'genesis_time'", (later,))
    fresh = open_store(tmp_path / "c")
    with fresh.transaction() as rows:
        assert rows.block >= 4
    assert fresh.head() >= 3 and store.head() >= 3


def test_an_open_block_cannot_be_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c", started=False)
    assert store.rows(0).get("item", "key") is None
    with pytest.raises(LocalFault):
        store.rows(1)


def test_rows_are_the_newest_at_or_before_the_block(tmp_path: Path) -> None:
    connection = create_file(tmp_path / "c", PARAMS)
    rows = FileRows(connection, 5)
    rows.put("item", "a", 1)
    rows.as_of(7).put("item", "a", 2)
    rows.as_of(7).put("item", "b", {"x": [1]})
    rows.as_of(9).put("item", "a", None)
    assert [rows.as_of(block).get("item", "a", "none") for block in (4, 5, 6, 7, 9)] == ["none", 1, 1, 2, "none"]
    assert [rows.as_of(block).scan("item") for block in (4, 6, 8, 9)] == [
        {},
        {"a": 1},
        {"a": 2, "b": {"x": [1]}},
        {"b": {"x": [1]}},
    ]


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c", started=False)
    with pytest.raises(RuntimeError), store.transaction() as rows:
        rows.put("item", "key", 1)
        raise RuntimeError
    with store.transaction() as rows:
        assert rows.get("item", "key") is None


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.binary(max_size=40))
def test_a_hash_names_its_block_and_no_other_bytes_do(seed: int, block: int, noise: bytes) -> None:
    assert block_of_hash(seed, "0x" + block_hash(seed, block).hex()) == block
    assert block_of_hash(seed + 1, block_hash(seed, block).hex()) == NO_SUCH_BLOCK
    assert block_of_hash(seed, "0x" + noise.hex()) == NO_SUCH_BLOCK
    assert block_of_hash(seed, "0xzz") == NO_SUCH_BLOCK
