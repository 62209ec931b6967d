"""Every checkpoint store: whole or absent, published once, checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_rig import NAMES, SETTINGS, hub_store, root_of, write_folder
from hub import TestHub

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.checkpoints.description import STATE_FILE
from distributed_training.checkpoints.local import LocalCheckpoints, local_ref
from distributed_training.errors import ConfigError, LocalFault, WireError


class Rig:
    """A store, and the same place as somebody else writes to it: `change` alters the checkpoint of round 4 there."""

    def __init__(self, store: CheckpointStore, change: Callable[[dict[str, bytes | None]], None]) -> None:
        self.store, self.change = store, change


@pytest.fixture(params=["local", "hub"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    root = tmp_path / "store"
    if request.param == "local":
        yield Rig(LocalCheckpoints(root), lambda files: change_folder(root / "round-000004", files))
        return
    with TestHub(root, settings=SETTINGS) as hub:
        yield Rig(hub_store(hub, tmp_path / "cache"), lambda files: change_commit(hub, files))


@pytest.fixture
def store(rig: Rig) -> CheckpointStore:
    rig.store.check(write=True)
    return rig.store


def change_folder(folder: Path, files: dict[str, bytes | None]) -> None:
    for name, data in files.items():
        (folder / name).unlink(missing_ok=True)
        if data is not None:
            (folder / name).write_bytes(data)


def change_commit(hub: TestHub, files: dict[str, bytes | None]) -> None:
    """The tag moves to a commit with other files, as only its owner, or the Hub, can do."""
    repo = hub.store.get("models", "org/run")
    assert repo is not None
    (tag,) = repo.tags
    tree = repo.commits[repo.tags[tag]].tree
    for name, data in files.items():
        if data is None:
            del tree[name]
        else:
            tree[name] = hub.store.entry(hub.store.blobs.add_bytes(data), lfs=name.endswith(".safetensors"))


def test_what_was_published_is_found_and_read_back(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.newest() is None and store.rounds() == [] and store.find(4, None) is None
    ref = store.publish(4, write_folder(tmp_path / "four"))
    assert ref.round == 4
    assert ref.digest == hashlib.sha256((tmp_path / "four" / STATE_FILE).read_bytes()).digest()
    assert store.newest() == store.find(4, ref.digest) == store.find(4, None) == ref
    assert store.find(4, bytes(32)) is None and store.find(5, None) is None
    said = store.describe(ref)
    assert (said.round, said.applied, said.state_root) == (4, 2, root_of("ours"))
    folder = store.fetch(ref, NAMES)
    for name in NAMES:
        assert (folder / name).read_bytes() == (tmp_path / "four" / name).read_bytes()


def test_newest_is_the_latest_round(store: CheckpointStore, tmp_path: Path) -> None:
    for index in (2, 10, 9):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    newest = store.newest()
    assert newest is not None and newest.round == 10 and store.rounds() == [2, 9, 10]
    older = store.find(2, None)
    assert older is not None
    for ref in (newest, older, newest):
        folder = store.fetch(ref, NAMES)
        assert (folder / NAMES[1]).read_bytes() == (tmp_path / str(ref.round) / NAMES[1]).read_bytes()


def test_the_same_state_again_is_the_one_that_is_there(store: CheckpointStore, tmp_path: Path) -> None:
    first = store.publish(4, write_folder(tmp_path / "a", card="loss 3"))
    assert store.publish(4, write_folder(tmp_path / "b", card="another card")) == first
    with pytest.raises(LocalFault, match=r"another state"):
        store.publish(4, write_folder(tmp_path / "c", content="theirs"))
    assert store.find(4, None) == first
    folder = store.fetch(first, ["README.md"])
    assert (folder / "README.md").read_bytes() == b"loss 3"


def test_the_folder_that_is_published_stays(store: CheckpointStore, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    store.publish(4, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_published_leaves_nothing(store: CheckpointStore, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / STATE_FILE).write_bytes(b"{}")
    with pytest.raises(WireError):
        store.publish(4, folder)
    (folder / STATE_FILE).unlink()
    with pytest.raises(LocalFault, match="cannot read"):
        store.publish(4, folder)
    assert store.newest() is None


@pytest.mark.parametrize("name", NAMES)
def test_half_a_folder_is_not_published(name: str, store: CheckpointStore, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / name).write_bytes(b"")
    with pytest.raises(WireError, match="size"):
        store.publish(4, folder)
    (folder / name).unlink()
    with pytest.raises(LocalFault, match="cannot read"):
        store.publish(4, folder)
    assert store.newest() is None


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"config.json": b"[]"}, "sha256"),
        ({"config.json": b"{ }"}, "size"),
        ({"config.json": None}, "config.json is missing"),
        ({"weights.bin": b"\x80\x04cos\nsystem\n."}, "weights.bin' is there"),
        ({"modeling.py": b"import os"}, "modeling.py' is there"),
        ({STATE_FILE: b"{}"}, "another sha256"),
    ],
)
def test_a_checkpoint_that_was_altered_is_refused(
    store: CheckpointStore, rig: Rig, files: dict[str, bytes | None], why: str, tmp_path: Path
) -> None:
    ref = store.publish(4, write_folder(tmp_path / "a"))
    rig.change(files)
    with pytest.raises(WireError, match=why):
        store.fetch(ref, NAMES)


def test_one_that_was_not_published_by_us_is_not_found_by_the_digest_of_ours(
    store: CheckpointStore, rig: Rig, tmp_path: Path
) -> None:
    ref = store.publish(4, write_folder(tmp_path / "a"))
    other = write_folder(tmp_path / "b", content="theirs")
    rig.change({path.name: path.read_bytes() for path in other.iterdir()})
    assert store.find(4, ref.digest) is None
    found = store.find(4, None)
    assert found is not None and found.digest != ref.digest


def test_a_state_of_another_round_is_refused(store: CheckpointStore, rig: Rig, tmp_path: Path) -> None:
    store.publish(4, write_folder(tmp_path / "a"))
    other = write_folder(tmp_path / "b", 5)
    rig.change({path.name: path.read_bytes() for path in other.iterdir()})
    ref = store.find(4, None)
    assert ref is not None
    with pytest.raises(WireError, match="of round 5, expected 4"):
        store.describe(ref)


def test_only_files_of_the_checkpoint_can_be_asked_for(store: CheckpointStore, tmp_path: Path) -> None:
    ref = store.publish(4, write_folder(tmp_path / "a"))
    with pytest.raises((WireError, LocalFault)):
        store.fetch(ref, ["../secret.json"])


def test_pruning_keeps_what_is_named(store: CheckpointStore, tmp_path: Path) -> None:
    for index in range(4):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    store.prune({0})
    for index in (0, 3):
        ref = store.find(index, None)
        assert ref is not None and store.fetch(ref, NAMES)


# --- the directory --------------------------------------------------------------------------------------------------


def test_a_failed_publication_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file")
    store = LocalCheckpoints(tmp_path / "store")
    with pytest.raises(ConfigError, match="no directory"):
        store.check(write=True)
    with pytest.raises(LocalFault, match="cannot publish"):
        store.publish(4, write_folder(tmp_path / "a"))


def test_half_written_folders_and_strays_are_no_checkpoints(tmp_path: Path) -> None:
    store = LocalCheckpoints(tmp_path / "store")
    ref = store.publish(4, write_folder(tmp_path / "a"))
    for name in ("round-backup", "round-", ".partial-x", "round-9"):
        (tmp_path / "store" / name).mkdir()
    assert store.newest() == ref
    assert sorted(p.name for p in Path(ref.location).iterdir()) == sorted([*NAMES, "README.md", STATE_FILE])


@pytest.mark.parametrize("name", ["7", "round-x", "mine", "round-٣"])
def test_a_folder_of_any_name_holds_the_round_that_it_says(name: str, tmp_path: Path) -> None:
    ref = local_ref(write_folder(tmp_path / name))
    assert LocalCheckpoints(tmp_path).describe(ref).round == ref.round == 4


@pytest.mark.parametrize("name", [NAMES[1], STATE_FILE])
def test_links_are_not_followed(name: str, tmp_path: Path) -> None:
    store = LocalCheckpoints(tmp_path / "store")
    ref = store.publish(4, write_folder(tmp_path / "a"))
    path = Path(ref.location) / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WireError, match="no regular file"):
        store.fetch(ref, NAMES)


def test_a_folder_with_a_link_is_not_published(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "README.md")
    with pytest.raises(WireError, match="no regular file"):
        LocalCheckpoints(tmp_path / "store").publish(4, folder)
    assert LocalCheckpoints(tmp_path / "store").newest() is None


# --- training_state.json --------------------------------------------------------------------------------------------

CHANGES: list[tuple[Any, str]] = [
    (lambda d: d.pop("round"), "KeyError"),
    (lambda d: d.update(more=1), "other fields"),
    (lambda d: d.update(schema=2), "schema 2"),
    (lambda d: d.update(schema=True), "schema True"),
    (lambda d: d.update(round=-1), "no number"),
    (lambda d: d.update(round=1.0), "no number"),
    (lambda d: d.update(applied="2"), "no number"),
    (lambda d: d.update(carry="zz"), "ValueError"),
    (lambda d: d.update(carry="00"), "carry"),
    (lambda d: d.update(state_root="ab"), "no sha256"),
    (lambda d: d.update(files=[]), "AttributeError"),
    (lambda d: d["files"].update({"config.json": {"sha256": "00" * 32, "bytes": 1 << 50}}), "no number"),
    (lambda d: d["files"].update({f"f{i}.json": d["files"]["config.json"] for i in range(1100)}), "at most 1024"),
    *[
        (lambda d, name=name: d["files"].update({name: d["files"]["config.json"]}), "cannot be a file")
        for name in (
            "../config.json", "a/b.json", "/etc/passwd.json", "pytorch_model.bin", "model.pkl", ".hidden.json",
            "training_state.json", "x" * 200 + ".json", "modeling_evil.py", "a\\b.json", "", "config.json\n",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_a_state_file_that_we_would_not_write_is_refused(change: Any, why: str, tmp_path: Path) -> None:
    store = LocalCheckpoints(tmp_path / "store")
    location = Path(store.publish(4, write_folder(tmp_path / "a")).location)
    document = json.loads((location / STATE_FILE).read_bytes())
    change(document)
    data = (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()
    (location / STATE_FILE).unlink()
    (location / STATE_FILE).write_bytes(data)
    with pytest.raises(WireError, match=why):
        store.describe(CheckpointRef(4, str(location), hashlib.sha256(data).digest()))


@pytest.mark.parametrize("data", [b"", b"null", b"\xff", b"[" * 4000, b"{" * 20, b" " * ((8 << 20) + 1)])
def test_what_is_no_state_file_at_all_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(data)
    with pytest.raises(WireError):
        LocalCheckpoints(tmp_path).describe(CheckpointRef(4, str(tmp_path), hashlib.sha256(data).digest()))


def test_a_folder_that_was_downloaded_is_read_with_what_clients_leave_beside(tmp_path: Path) -> None:
    store = LocalCheckpoints(tmp_path / "store")
    ref = store.publish(4, write_folder(tmp_path / "four"))
    for name in (".cache", ".git"):
        (Path(ref.location) / name).mkdir()
    (Path(ref.location) / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert store.fetch(ref, NAMES) == Path(ref.location)
