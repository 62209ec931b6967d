"""Every checkpoint store: whole or absent, published once, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from distributed_training.checkpoints.base import CheckpointStore
from distributed_training.checkpoints.local import STATE_FILE, LocalCheckpoints
from distributed_training.errors import LocalFault, WireError


@pytest.fixture(params=[LocalCheckpoints])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    return request.param(tmp_path / "checkpoints")


def files(text: str = "weights") -> dict[str, bytes]:
    """A checkpoint as the owner makes it: its state file names the sha256 of every other file."""
    parts = {"model.safetensors": text.encode(), "config.json": b"{}"}
    named = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    return {**parts, STATE_FILE: json.dumps({"files": named}).encode()}


def test_what_is_published_can_be_read(store: CheckpointStore) -> None:
    ref = store.publish(4, files())
    assert ref.round == 4 and ref.digest == hashlib.sha256(files()[STATE_FILE]).digest()
    assert {name: store.read(ref, name) for name in files()} == files()


def test_publishing_again_returns_what_is_there(store: CheckpointStore) -> None:
    first = store.publish(4, files("first"))
    assert store.publish(4, files("second")) == first
    assert store.read(first, "model.safetensors") == b"first"


def test_the_newest_is_the_one_of_the_latest_round(store: CheckpointStore) -> None:
    assert store.newest() is None
    refs = [store.publish(index, files(str(index))) for index in (2, 10, 4)]
    assert store.newest() == refs[1]
    assert store.read(refs[0], "model.safetensors") == b"2"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", STATE_FILE])
def test_a_file_that_changed_is_refused(store: CheckpointStore, name: str) -> None:
    ref = store.publish(4, files())
    path = Path(ref.location) / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(WireError, match=f"checkpoint .*{name}"):
        store.read(ref, name)


def test_a_state_file_of_other_files_is_refused(store: CheckpointStore) -> None:
    ref = store.publish(4, files())
    for name, data in files("others").items():
        (Path(ref.location) / name).write_bytes(data)
    with pytest.raises(WireError, match="has changed"):
        store.read(ref, "model.safetensors")


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b"\xff", b'{"files": []}', b'{"files": {"other": "00"}}'])
def test_a_state_file_that_does_not_name_the_file_is_refused(store: CheckpointStore, state: bytes) -> None:
    ref = store.publish(4, {**files(), STATE_FILE: state})
    with pytest.raises(WireError, match=r"does not name config\.json"):
        store.read(ref, "config.json")
    assert store.read(ref, STATE_FILE) == state


def test_a_file_that_is_gone_is_our_own_fault(store: CheckpointStore) -> None:
    ref = store.publish(4, files())
    (Path(ref.location) / "config.json").unlink()
    with pytest.raises(LocalFault, match=r"config\.json"):
        store.read(ref, "config.json")


def test_a_checkpoint_without_a_state_file_is_not_published(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="training_state"):
        store.publish(4, {"config.json": b"{}"})
    assert store.newest() is None


class Files(Mapping[str, bytes]):
    """The files of a checkpoint; `during` happens while they are written."""

    def __init__(self, during: CheckpointStore | None, seen: list[object]) -> None:
        self._files, self._during, self._seen = files("ours"), during, seen

    def __getitem__(self, name: str) -> bytes:
        if name == "config.json" and self._during is None:
            raise OSError("disk full")
        if name == "config.json" and self._during is not None:
            self._seen.append(self._during.newest())
            self._during.publish(4, files("theirs"))
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def test_of_two_publishers_the_first_to_finish_wins(store: CheckpointStore) -> None:
    seen: list[object] = []
    ref = store.publish(4, Files(store, seen))
    assert seen == [None]  # half written files are not there
    assert store.read(ref, "model.safetensors") == b"theirs"
    assert store.newest() == ref


def test_a_failed_publication_leaves_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    with pytest.raises(LocalFault, match="cannot publish"):
        store.publish(4, Files(None, []))
    assert store.newest() is None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert store.publish(4, files()).round == 4


def test_nothing_is_left_over_after_a_publication(store: CheckpointStore, tmp_path: Path) -> None:
    store.publish(4, Files(store, []))
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(files())


def test_stray_folders_are_no_checkpoints(tmp_path: Path) -> None:
    store = LocalCheckpoints(tmp_path)
    store.publish(4, files())
    for name in ("round-backup", "round-", ".partial-x", "round-9"):
        (tmp_path / name).mkdir()
    newest = store.newest()
    assert newest is not None and newest.round == 4
