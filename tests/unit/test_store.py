from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from frozen import known_vector
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from samples import CARRY, key

from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.errors import LocalFault, WireError
from distributed_training.protocol.wire import encode_carry
from distributed_training.snapshots.statefile import decode_state, encode_state
from distributed_training.training.outer import RunState, state_root


def state(seed: int = 3) -> RunState:
    return RunState(known_vector(100, seed), known_vector(100, seed + 2), 2, CARRY)


def files(root: Path) -> Iterator[str]:
    return (str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> RoundStore:
    return RoundStore(tmp_path / "node")


def test_what_is_put_is_there_after_a_restart(store: RoundStore) -> None:
    store.put_work(3, key(1), b"work")
    store.put_own(3, (b"wi", b"re"), b"own log")
    store.put_output(3, key(4), StoredOutput(b"record", (b"chu", b"nks")))
    again = RoundStore(store.root)
    assert again.work(3, key(1)) == b"work"
    assert (again.own_wire(3), again.own_log(3)) == (b"wire", b"own log")
    assert again.output(3, key(4)) == StoredOutput(b"record", (b"chunks",))
    assert (again.own_piece(3, 2, 10), again.own_piece(3, 4, 10), again.own_piece(4, 0, 1)) == (b"re", b"", b"")


def test_what_was_not_put_is_none(store: RoundStore) -> None:
    store.put_work(3, key(1), b"work")
    assert store.work(4, key(1)) is store.work(3, key(2)) is None
    assert store.own_wire(3) is store.own_log(3) is store.output(3, key(1)) is store.newest_state() is None


def test_writing_again_replaces_whole(store: RoundStore) -> None:
    store.put_work(3, key(1), b"a long first version")
    store.put_work(3, key(1), b"second")
    assert store.work(3, key(1)) == b"second"
    assert list(files(store.root)) == [f"rounds/000003/work-{key(1).hex()}"]


def test_a_write_that_was_cut_off_is_not_seen(store: RoundStore) -> None:
    folder = store.root / "rounds" / "000003"
    folder.mkdir()
    (folder / f"work-{key(1).hex()}.part").write_bytes(b"half")
    (folder / f"output-{key(4).hex()}.chunks").write_bytes(b"chunks without a record")
    (store.root / "state" / "000009.safetensors.part").write_bytes(encode_state(9, state())[:50])
    assert store.work(3, key(1)) is store.output(3, key(4)) is store.newest_state() is None
    store.put_work(3, key(1), b"whole")
    assert store.work(3, key(1)) == b"whole"


def test_prune_drops_older_rounds_only(store: RoundStore) -> None:
    for index in range(12):
        store.put_work(index, key(1), b"work")
        store.put_own(index, [b"wire"], b"log")
    (store.root / "rounds" / "notes").mkdir()
    store.put_state(1, state())
    store.prune(11, 8, 2)
    kept = [i for i in range(12) if store.work(i, key(1)) is not None]
    assert kept == list(range(3, 12))
    assert [i for i in range(12) if store.own_wire(i) or store.own_log(i)] == [9, 10, 11]
    assert (store.root / "rounds" / "notes").is_dir() and store.newest_state() is not None


def test_the_two_newest_states_are_kept(store: RoundStore) -> None:
    for index in (1, 2, 3, 10):
        store.put_state(index, state(index))
    assert list(files(store.root)) == ["state/000003.safetensors", "state/000010.safetensors"]
    newest = store.newest_state()
    assert newest is not None and newest[0] == 10
    assert state_root(newest[1], 64) == state_root(state(10), 64)


def test_what_killed_processes_left_of_states_goes_with_the_next_one(store: RoundStore) -> None:
    folder = store.root / "state"
    for name in ("000002.safetensors.part", "000003-aa.fetch", "000009-bb.fetch"):
        (folder / name).write_bytes(b"half a state")
    store.put_state(3, state())
    assert list(files(store.root)) == ["state/000003.safetensors", "state/000009-bb.fetch"]


@pytest.mark.parametrize("damage", [b"", b"no safetensors", encode_state(3, state())[:-1], bytes(8)])
def test_a_corrupt_snapshot_is_skipped(store: RoundStore, damage: bytes) -> None:
    store.put_state(2, state(2))
    store.put_state(3, state(3))
    (store.root / "state" / "000003.safetensors").write_bytes(damage)
    newest = store.newest_state()
    assert newest is not None and newest[0] == 2
    assert state_root(newest[1], 64) == state_root(state(2), 64)


def test_a_place_that_cannot_be_written_is_our_own_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalFault, match="cannot write"):
        RoundStore(tmp_path / "file")
    store = RoundStore(tmp_path / "node")
    (tmp_path / "node" / "rounds" / "000003").write_text("in the way")
    store.put_work(3, key(1), b"work")
    assert store.work(3, key(1)) == b"work" and len(store.overflow) == 1, "in memory until the disk takes it"
    (tmp_path / "node" / "state").rmdir()
    (tmp_path / "node" / "state").write_text("in the way")
    with pytest.raises(LocalFault, match="cannot write"):
        store.put_state(3, state())
    (tmp_path / "node" / "rounds" / "000004" / "wire").mkdir(parents=True)
    with pytest.raises(LocalFault, match="cannot read"):
        store.own_wire(4)


# --- state snapshots -----------------------------------------------------------------------------


def test_a_snapshot_comes_back_byte_for_byte() -> None:
    index, read = decode_state(encode_state(7, state()))
    assert (index, read.applied, read.carry) == (7, 2, CARRY)
    assert read.params.tobytes() == state().params.tobytes() and read.momentum.tobytes() == state().momentum.tobytes()
    read.params[0] = 1  # writable


META = {"round": "7", "applied": "2", "carry": encode_carry(CARRY).hex()}
ONES = np.ones(4, np.float32)
WRONG = {
    "no metadata": save({"params": ONES, "momentum": ONES}),
    "no momentum": save({"params": ONES}, metadata=META),
    "another length": save({"params": ONES, "momentum": ONES[:3]}, metadata=META),
    "another shape": save({"params": ONES.reshape(2, 2), "momentum": ONES.reshape(2, 2)}, metadata=META),
    "another dtype": save({"params": ONES, "momentum": ONES.astype(np.float64)}, metadata=META),
    "half precision": save({"params": ONES.astype(np.float16), "momentum": ONES.astype(np.float16)}, metadata=META),
    "no round": save({"params": ONES, "momentum": ONES}, metadata={**META, "round": "x"}),
    "a negative round": save({"params": ONES, "momentum": ONES}, metadata={**META, "round": "-1"}),
    "a negative count": save({"params": ONES, "momentum": ONES}, metadata={**META, "applied": "-1"}),
    "a broken carry": save({"params": ONES, "momentum": ONES}, metadata={**META, "carry": "00"}),
    "a huge header": b"\xff" * 8 + encode_state(7, state())[8:],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_snapshot_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(WireError, match="state snapshot"):
        decode_state(WRONG[name])


@settings(max_examples=100)
@given(st.integers(0, 300), st.binary(min_size=1, max_size=8), st.booleans())
def test_mutated_snapshots_raise_nothing_else(at: int, patch: bytes, insert: bool) -> None:
    good = encode_state(7, state())
    try:
        _, read = decode_state(good[:at] + patch + good[at + (0 if insert else len(patch)) :])
    except WireError:
        return
    assert read.params.dtype == read.momentum.dtype == np.float32 and read.params.shape == read.momentum.shape


def test_a_snapshot_has_one_spelling_and_finite_numbers() -> None:
    good = encode_state(7, state())
    header = good[8 : 8 + int.from_bytes(good[:8], "little")]
    for other in (header.replace(b'"7"', b'"07"'), header.replace(b":{", b": {", 1), header + b" " * 8):
        with pytest.raises(WireError, match="state snapshot"):
            decode_state(len(other).to_bytes(8, "little") + other + good[8 + len(header) :])
    for bad in (np.nan, np.inf):
        with pytest.raises(WireError, match="non-finite"):
            decode_state(good[:-4] + np.float32(bad).tobytes())
    with pytest.raises(WireError, match="state snapshot"):
        decode_state(good + b"\0")


def test_snapshots_are_plain_safetensors() -> None:
    read = load(encode_state(7, state()))
    assert read["params"].tobytes() == state().params.tobytes() and set(read) == {"params", "momentum"}


def test_two_threads_may_write_the_same_file(tmp_path: Path) -> None:
    """One that was given up, of a gather that ended, is still at it."""
    store, path = RoundStore(tmp_path), tmp_path / "rounds" / "000003" / "log"
    path.parent.mkdir()
    other = path.with_name("log.part")
    other.write_bytes(b"half of")
    store.put_own(3, [b"wire"], b"log")
    assert (other.read_bytes(), path.read_bytes()) == (b"half of", b"log")
