"""Checkpoints on the Hub through its real client, while everything goes wrong that can."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_rig import NAMES, REPO, RUN, SETTINGS, hub_store, put, tags, titles, write_folder, write_state
from hub import Settings, TestHub, User

from distributed_training.checkpoints.base import CheckpointRef
from distributed_training.checkpoints.description import STATE_FILE, parse_description, run_name
from distributed_training.checkpoints.download import Pace
from distributed_training.checkpoints.hub import HubCheckpoints
from distributed_training.errors import ConfigError, LocalFault, WireError

WEIGHTS = 3_000_000  # three parts of an upload


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with TestHub(tmp_path / "hub", settings=SETTINGS) as hub:
        yield hub
        assert hub.traffic.leaks == [], "the token went to the store of objects"


@pytest.fixture
def store(hub: TestHub, tmp_path: Path) -> HubCheckpoints:
    made = hub_store(hub, tmp_path / "cache")
    made.check(write=True)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "four", weights=WEIGHTS)


def is_whole(store: HubCheckpoints, ref: CheckpointRef | None, folder: Path) -> bool:
    return ref is not None and all(
        (store.fetch(ref, NAMES) / name).read_bytes() == (folder / name).read_bytes() for name in NAMES
    )


def test_one_commit_and_one_tag_for_each_checkpoint(store: HubCheckpoints, hub: TestHub, tmp_path: Path) -> None:
    for index in (0, 4, 8):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    assert titles(hub) == [f"{RUN} round {index}" for index in (8, 4, 0)]
    assert sorted(tags(hub)) == [f"{RUN}.0", f"{RUN}.4", f"{RUN}.8"]


def test_a_commit_replaces_all_files_of_the_one_before(store: HubCheckpoints, hub: TestHub, tmp_path: Path) -> None:
    store.publish(0, write_folder(tmp_path / "zero", 0, "first"))
    hub.put("models", REPO, {"old.bin": b"pickle", "notes/todo.txt": b"x"})
    ref = store.publish(4, write_folder(tmp_path / "a"))
    assert is_whole(store, ref, tmp_path / "a")


# --- publishing under faults ----------------------------------------------------------------------------------------

LOOK, COMMIT, TAG, PUT = r"/revision/", r"/commit/main", r"/tag/", r"/upload/"
ONCE = [
    ("somebody commits just before us", "conflict", "POST", COMMIT),
    ("the answer to the commit is lost", "lost", "POST", COMMIT),
    ("the answer to the tag is lost", "lost", "POST", TAG),
    ("an upload breaks off", "drop", "PUT", PUT),
    ("an upload is reset", "reset", "PUT", PUT),
    ("an upload is answered 503", "unavailable", "PUT", PUT),
    ("looking is answered 429", "rate_limit", "GET", LOOK),
    ("looking breaks off", "down", "GET", LOOK),
]


@pytest.mark.parametrize(("kind", "method", "path"), [case[1:] for case in ONCE], ids=[case[0] for case in ONCE])
def test_what_goes_wrong_once_makes_no_second_commit_and_moves_no_tag(
    kind: str, method: str, path: str, store: HubCheckpoints, hub: TestHub, folder: Path
) -> None:
    fault = hub.faults.add(kind, method=method, path=path, after_bytes=1000 if path == PUT else 0)  # type: ignore[arg-type]
    ref = publish_again(store, folder)
    assert fault.fired == 1
    ours = [title for title in titles(hub) if title == f"{RUN} round 4"]
    assert len(ours) == 1 and list(tags(hub)) == [f"{RUN}.4"]
    assert is_whole(store, ref, folder)


def publish_again(store: HubCheckpoints, folder: Path, tries: int = 3) -> CheckpointRef:
    """As the publisher does it: trouble of the store is tried again."""
    for _ in range(tries - 1):
        try:
            return store.publish(4, folder)
        except LocalFault:
            continue
    return store.publish(4, folder)


@pytest.mark.parametrize("path", [COMMIT, TAG])
def test_a_write_that_is_refused_for_a_while_is_done_later(
    path: str, store: HubCheckpoints, hub: TestHub, folder: Path
) -> None:
    fault = hub.faults.add("unavailable", method="POST", path=path, times=None)
    with pytest.raises(LocalFault, match="503"):
        store.publish(4, folder)
    assert store.newest() is None
    hub.faults.remove(fault)
    assert is_whole(store, store.publish(4, folder), folder)
    assert len(titles(hub)) == 1


def test_a_hub_that_is_down_is_our_own_trouble_until_it_is_back(
    store: HubCheckpoints, hub: TestHub, folder: Path
) -> None:
    hub.stop()
    with pytest.raises(LocalFault, match="refused"):
        store.publish(4, folder)
    hub.start()
    assert is_whole(store, store.publish(4, folder), folder)


def test_two_that_publish_the_same_state_at_once_make_one_checkpoint(hub: TestHub, folder: Path) -> None:
    found: list[CheckpointRef] = []
    stores = [hub_store(hub, folder.parent / f"cache{i}") for i in range(3)]
    stores[0].check(write=True)
    threads = [threading.Thread(target=lambda s=s: found.append(publish_again(s, folder))) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len({ref.location for ref in found}) == 1
    assert len(titles(hub)) == 1


def test_a_repository_that_could_not_be_made_at_the_start_is_made_later(hub: TestHub, folder: Path) -> None:
    store = hub_store(hub, folder.parent / "cache")
    hub.stop()
    with pytest.raises(LocalFault):
        store.check(write=True)
    hub.start()
    assert is_whole(store, store.publish(4, folder), folder)


@pytest.mark.parametrize("state", [None, b"{}"])
def test_a_repository_with_other_things_is_refused_and_left_alone(
    state: bytes | None, hub: TestHub, folder: Path
) -> None:
    theirs = {"model.bin": b"years of work"} | ({} if state is None else {STATE_FILE: state})
    before = hub.put("models", REPO, theirs)
    store = hub_store(hub, folder.parent / "cache")
    with pytest.raises(ConfigError, match="a repository of its own") as caught:
        store.check(write=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(LocalFault, match="a repository of its own"):
        store.publish(4, folder)
    repo = hub.store.get("models", REPO)
    assert repo is not None and repo.branches["main"] == before


def test_a_repository_of_another_run_or_with_a_card_is_taken(hub: TestHub, folder: Path, tmp_path: Path) -> None:
    hub.put("models", REPO, {"README.md": b"soon"})
    other = HubCheckpoints(REPO, run_name("other", "11" * 32), tmp_path / "o", token="hf_test", endpoint=hub.endpoint)
    other.check(write=True)
    other.publish(0, write_folder(tmp_path / "other", 0, "other run"))
    store = hub_store(hub, tmp_path / "cache")
    store.check(write=True)
    assert is_whole(store, store.publish(4, folder), folder)


def test_a_tag_on_another_state_is_never_moved(
    store: HubCheckpoints, hub: TestHub, folder: Path, tmp_path: Path
) -> None:
    put(hub, write_folder(tmp_path / "theirs", content="theirs"))
    before = tags(hub)
    with pytest.raises(LocalFault, match="is never moved"):
        store.publish(4, folder)
    assert tags(hub) == before


# --- killed ---------------------------------------------------------------------------------------------------------

DEATHS = [
    "before the commit",
    "during an upload",
    "after the large files, before the commit",
    "after the commit, before the tag",
    "after the tag, before the chain",
]


@pytest.mark.parametrize("point", DEATHS)
def test_killed_at_any_point_nothing_half_is_there_and_the_next_one_goes_on(
    point: str, hub: TestHub, folder: Path, tmp_path: Path
) -> None:
    die(hub, folder, tmp_path, point)
    store = hub_store(hub, tmp_path / "cache")
    committed, tagged = point.startswith("after the commit"), point.startswith("after the tag")
    print(f"{point}: commits {titles(hub)}, tags {list(tags(hub))}")
    assert len(titles(hub)) == (1 if committed or tagged else 0)
    assert list(tags(hub)) == ([f"{RUN}.4"] if tagged else [])
    assert is_whole(store, store.newest(), folder) if tagged else store.newest() is None
    store.check(write=True)
    restaged = write_folder(
        tmp_path / "again", weights=WEIGHTS, card="another card: losses of the former life are gone"
    )
    ref = store.publish(4, restaged)
    assert is_whole(store, ref, folder)
    assert titles(hub) == [f"{RUN} round 4"] and list(tags(hub)) == [f"{RUN}.4"]
    store.publish(8, write_folder(tmp_path / "eight", 8, "later"))
    assert sorted(tags(hub)) == [f"{RUN}.4", f"{RUN}.8"]


def die(hub: TestHub, folder: Path, tmp_path: Path, point: str) -> None:
    fault = hub.faults.add("stall", method="PUT", path=PUT, seconds=60) if point == "during an upload" else None
    script = Path(__file__).with_name("hub_child.py")
    command = [sys.executable, str(script), hub.endpoint, str(folder), str(tmp_path / "theirs"), point]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment) as child:
        while fault is not None and not fault.fired and child.poll() is None:
            time.sleep(0.02)
        if fault is not None:
            child.kill()
        assert child.wait(60) == (9 if fault is None else -9)
    hub.faults.clear()


# --- making room ----------------------------------------------------------------------------------------------------


def test_old_checkpoints_go_with_their_objects_but_never_one_that_is_named(hub: TestHub, tmp_path: Path) -> None:
    store = hub_store(hub, tmp_path / "cache", keep=2)
    store.check(write=True)
    other = HubCheckpoints(REPO, run_name("other", "11" * 32), tmp_path / "o", token="hf_test", endpoint=hub.endpoint)
    other.publish(0, write_folder(tmp_path / "other", 0, "other run"))
    for index in range(5):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    store.prune({1})
    assert sorted(tags(hub)) == [f"{RUN}.{index}" for index in (1, 3, 4)] + [f"{run_name('other', '11' * 32)}.0"]
    for index in range(5):
        ref = store.find(index, None)
        assert is_whole(store, ref, tmp_path / str(index)) if index in (1, 3, 4) else ref is None
    assert is_whole(other, other.newest(), tmp_path / "other")
    repo = hub.store.get("models", REPO)
    assert repo is not None and len(repo.lfs) == 4, "objects of the deleted checkpoints take room"
    before = len(hub.requests)
    store.prune({1})
    assert len(hub.requests) == before + 1, "nothing to do costs one request"


def test_what_another_branch_holds_is_not_pruned(hub: TestHub, tmp_path: Path) -> None:
    store = hub_store(hub, tmp_path / "cache", keep=2)
    store.check(write=True)
    first = store.publish(0, write_folder(tmp_path / "0", 0, "state 0"))
    repo = hub.store.get("models", REPO)
    assert repo is not None
    repo.branches["backup"] = repo.branches["main"]
    for index in range(1, 4):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    store.prune(set())
    assert sorted(tags(hub)) == [f"{RUN}.2", f"{RUN}.3"]
    assert is_whole(store, first, tmp_path / "0")
    assert len(repo.lfs) == 3


def test_a_round_that_was_pruned_can_be_published_again(hub: TestHub, tmp_path: Path) -> None:
    store = hub_store(hub, tmp_path / "cache", keep=2)
    store.check(write=True)
    for index in range(4):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    store.prune(set())
    assert is_whole(store, store.publish(1, tmp_path / "1"), tmp_path / "1")


def test_pruning_that_breaks_off_is_gone_on_with(hub: TestHub, tmp_path: Path) -> None:
    store = hub_store(hub, tmp_path / "cache", keep=2)
    store.check(write=True)
    for index in range(4):
        store.publish(index, write_folder(tmp_path / str(index), index, f"state {index}"))
    hub.faults.add("unavailable", path="lfs-files/batch")
    with pytest.raises(LocalFault):
        store.prune(set())
    store.publish(4, write_folder(tmp_path / "4", 4, "state 4"))
    store.prune(set())
    repo = hub.store.get("models", REPO)
    assert repo is not None and len(repo.lfs) == 2 and len(repo.tags) == 2


# --- reading under faults -------------------------------------------------------------------------------------------

BYTES = r"/cdn/.*model.safetensors"


@pytest.fixture
def ref(store: HubCheckpoints, folder: Path) -> CheckpointRef:
    return store.publish(4, folder)


@pytest.mark.parametrize(
    ("kind", "times", "after"),
    [("drop", 2, 1_500_000), ("reset", 1, 0), ("expired", 2, 0), ("truncate", 2, 1_000_000), ("unavailable", 1, 0),
     ("rate_limit", 1, 0)],
)  # fmt: skip
def test_a_download_goes_on_where_it_broke_off(
    kind: str, times: int, after: int, store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path
) -> None:
    hub.faults.add(kind, path=BYTES, times=times, after_bytes=after)  # type: ignore[arg-type]
    assert is_whole(store, ref, folder)
    sent = sum(seen.sent for seen in hub.requests if "model.safetensors" in seen.path and seen.path.startswith("/cdn"))
    assert sent < 1.4 * WEIGHTS, "what had arrived was fetched again"


@pytest.mark.parametrize("kind", ["stall", "drop"])
def test_a_server_that_drips_is_given_up_after_a_while(
    kind: str, hub: TestHub, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    """Each answer brings a little, so that no try is without a byte."""
    hub.faults.add(kind, path=BYTES, times=None, after_bytes=70_000, seconds=0.4)  # type: ignore[arg-type]
    slow = hub_store(hub, tmp_path / "cache", pace=Pace(bytes_per_s=10_000_000, window_s=0.3))
    started = time.monotonic()
    with pytest.raises(LocalFault, match="kB/s arrived"):
        slow.fetch(ref, NAMES)
    assert time.monotonic() - started < 5
    hub.faults.clear()
    assert is_whole(hub_store(hub, tmp_path / "cache"), ref, folder)


def test_two_processes_do_not_fetch_into_one_folder(
    store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    where = str(tmp_path / "cache")
    lock = "import sys, pathlib; from distributed_training.checkpoints.download import claim"
    lock += f"; claim(pathlib.Path({where!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", f"{lock}; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match=r"in use by process \d+ \(") as caught:
            store.fetch(ref, NAMES)
        assert "\n" not in str(caught.value)
        other.stdin.close()
        other.wait(20)
    assert is_whole(store, ref, folder)


def test_a_restart_goes_on_where_the_killed_process_was(
    store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "cache" / ref.digest.hex()[:32] / "model.safetensors.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((folder / "model.safetensors").read_bytes()[:2_000_000])
    hub.traffic.reset()
    again = hub_store(hub, tmp_path / "cache")
    assert is_whole(again, ref, folder)
    assert [seen.byte_range for seen in hub.requests if seen.path.startswith("/cdn")] == ["bytes=2000000-"]
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_half_a_file_with_other_bytes_is_fetched_from_the_start(
    store: HubCheckpoints, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache" / ref.digest.hex()[:32]
    cache.mkdir(parents=True)
    (cache / "model.safetensors.incomplete").write_bytes(bytes(1_000_000))
    assert is_whole(store, ref, folder)


@pytest.mark.parametrize("spoil", ["altered", "truncated", "longer", "gone"])
def test_a_cached_file_is_hashed_again_and_a_wrong_one_fetched_anew(
    spoil: str, store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path
) -> None:
    path = store.fetch(ref, NAMES) / "model.safetensors"
    data = path.read_bytes()
    hub.traffic.reset()
    assert is_whole(store, ref, folder)
    assert not [seen for seen in hub.requests if "safetensors" in seen.path], "a good cached file is not fetched"
    spoiled = {"altered": b"\xff" + data[1:], "truncated": data[:-1], "longer": data + b"\0"}
    path.unlink()
    if spoil in spoiled:
        path.write_bytes(spoiled[spoil])
    assert is_whole(store, ref, folder)


def test_wrong_bytes_of_the_right_size_are_refused(
    store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    hub.faults.add("wrong_bytes", path=BYTES)
    with pytest.raises(WireError, match="another sha256"):
        store.fetch(ref, NAMES)
    assert not list((tmp_path / "cache").rglob("model*"))
    assert is_whole(store, ref, folder)


def test_a_state_file_with_wrong_bytes_is_refused(
    store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path
) -> None:
    hub.faults.add("wrong_bytes", path=rf"/resolve/.*{STATE_FILE}")
    with pytest.raises(WireError, match="another sha256"):
        store.describe(ref)


def test_the_cache_holds_one_checkpoint(
    store: HubCheckpoints, ref: CheckpointRef, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "somebody's photos").mkdir(parents=True)
    store.fetch(ref, NAMES)
    later = store.publish(8, write_folder(tmp_path / "eight", 8, "later"))
    assert is_whole(store, later, tmp_path / "eight")
    there = {path.name for path in (tmp_path / "cache").iterdir()}
    assert there == {".lock", later.digest.hex()[:32], "somebody's photos"}


def test_what_is_read_is_the_commit_even_when_the_branch_goes_on(
    store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path
) -> None:
    hub.put("models", REPO, {"model.safetensors": b"somebody else's"})
    assert is_whole(store, ref, folder)


# --- repositories of strangers --------------------------------------------------------------------------------------

EVIL = {
    "pytorch_model.bin": b"\x80\x04cposix\nsystem\n.",
    "modeling_evil.py": b"import os",
    "sub/model.safetensors": b"x",
    "..\\up.json": b"{}",
    "link": b"/etc/passwd",
}


@pytest.mark.parametrize("name", EVIL)
def test_a_repository_with_anything_else_is_refused_before_a_byte_is_fetched(
    name: str, store: HubCheckpoints, hub: TestHub, folder: Path, tmp_path: Path
) -> None:
    put(hub, folder, {name: EVIL[name]})
    ref = store.find(4, None)
    assert ref is not None
    with pytest.raises(WireError, match="is there, which"):
        store.fetch(ref, NAMES)
    assert not [seen for seen in hub.requests if seen.path.startswith("/cdn")]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["../../escaped.json", "/tmp/escaped.json", "a/../../b.json", "weights.pkl"])
def test_a_state_file_that_names_other_places_is_refused(
    name: str, store: HubCheckpoints, hub: TestHub, folder: Path, tmp_path: Path
) -> None:
    said = parse_description((folder / STATE_FILE).read_bytes())
    digest = write_state(folder, said, files={**said.files, name: said.files["config.json"]})
    put(hub, folder)
    ref = store.find(4, digest)
    assert ref is not None
    with pytest.raises(WireError, match="cannot be a file of a checkpoint"):
        store.fetch(ref, NAMES)
    assert not (tmp_path / "cache").exists() and not list(tmp_path.rglob("escaped*"))


def test_sizes_are_compared_before_anything_is_fetched(
    store: HubCheckpoints, hub: TestHub, folder: Path, tmp_path: Path
) -> None:
    put(hub, folder, {"model.safetensors": bytes(WEIGHTS + 1)})
    ref = store.find(4, None)
    assert ref is not None
    with pytest.raises(WireError, match="does not have the size"):
        store.fetch(ref, NAMES)
    assert not (tmp_path / "cache").exists()


def test_a_state_file_without_end_is_cut_off(store: HubCheckpoints, hub: TestHub, folder: Path) -> None:
    put(hub, folder, {STATE_FILE: b" " * (9 << 20)})
    with pytest.raises(WireError, match="more than"):
        store.find(4, None)
    assert sum(seen.sent for seen in hub.requests) < 12 << 20


# --- what a person has to put right ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "why"), [("hf_read", "may only read"), ("hf_nobody", "does not know this token"), (None, "no token")]
)
def test_a_token_that_cannot_write_is_said_at_the_start(
    token: str | None, why: str, hub: TestHub, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        hub_store(hub, tmp_path, token=token).check(write=True)
    assert "\n" not in str(caught.value) and "HF_TOKEN" in str(caught.value)


def test_a_repository_that_is_not_there_or_another_kind_is_said_at_the_start(hub: TestHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="check the name"):
        hub_store(hub, tmp_path).check(write=False)
    hub.put("datasets", REPO, {"a.txt": b"a"})
    for write in (False, True):
        with pytest.raises(ConfigError, match="is a dataset repository"):
            hub_store(hub, tmp_path).check(write=write)


def test_a_private_repository_needs_a_token(hub: TestHub, tmp_path: Path) -> None:
    hub.put("models", REPO, {"a.txt": b"a"}, private=True)
    with pytest.raises(ConfigError, match="private or gated"):
        HubCheckpoints(REPO, RUN, tmp_path, token=None, endpoint=hub.endpoint).check(write=False)
    hub_store(hub, tmp_path).check(write=False)


def test_a_reader_needs_no_token(store: HubCheckpoints, hub: TestHub, ref: CheckpointRef, folder: Path) -> None:
    reader = HubCheckpoints(REPO, RUN, folder.parent / "reader", token=None, endpoint=hub.endpoint)
    reader.check(write=False)
    assert is_whole(reader, reader.find(4, ref.digest), folder)


@pytest.mark.parametrize(("repo", "keep", "why"), [("run", 5, "ORG/NAME"), ("a/b/c", 5, "ORG/NAME"), (REPO, 1, "keep")])
def test_what_cannot_be_is_refused(repo: str, keep: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        HubCheckpoints(repo, RUN, tmp_path, keep=keep)


def test_a_token_that_may_not_write_here_is_our_own_trouble_later(tmp_path: Path, folder: Path) -> None:
    tokens = {"hf_test": User("tester", "write", ("other",))}
    with TestHub(tmp_path / "hub2", settings=Settings(tokens)) as hub:
        hub.put("models", REPO, {"README.md": b"a"})
        with pytest.raises(LocalFault, match="may not change"):
            hub_store(hub, tmp_path / "c").publish(4, folder)
