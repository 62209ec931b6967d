"""Repositories, commits, refs and history as the real client sees them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub import Settings, TestHub
from hub.conftest import TOKENS

REPO = "org/model"


def add(path: str, data: bytes = b"data") -> CommitOperationAdd:
    return CommitOperationAdd(path, data)


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_a_repository_is_made_once_and_deleted(api: HfApi) -> None:
    url = api.create_repo(REPO)
    assert (url.repo_id, url.repo_type) == (REPO, "model")
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError) as conflict:
        api.create_repo(REPO)
    assert status(conflict) == 409
    assert api.create_repo("mine", repo_type="dataset").repo_id == "tester/mine"
    assert api.list_repo_files(REPO) == [".gitattributes"]
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_a_commit_adds_copies_and_deletes(api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_commit(
        REPO, [add("a.json"), add("d/w.safetensors", b"w" * 99), add("empty.bin", b"")], commit_message="1"
    )
    api.create_commit(REPO, [add("d/e/x.txt"), CommitOperationCopy("d/w.safetensors", "copy.bin")], commit_message="2")
    info = api.model_info(REPO, files_metadata=True)
    found = {s.rfilename: (s.size, s.lfs.sha256 if s.lfs else None) for s in info.siblings or []}
    sha256 = found["d/w.safetensors"][1]
    assert sha256 is not None and found["copy.bin"] == (99, sha256)
    assert (found["a.json"], found["empty.bin"]) == ((4, None), (0, None))
    deletions = [CommitOperationDelete("d/", is_folder=True), CommitOperationDelete("a.json")]
    api.create_commit(REPO, deletions, commit_message="3")
    assert set(api.list_repo_files(REPO)) == {".gitattributes", "copy.bin", "empty.bin"}
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("a.json")], commit_message="4")


def test_a_stale_parent_is_a_conflict(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO)
    parent = api.repo_info(REPO).sha
    first = api.create_commit(REPO, [add("a")], commit_message="first", parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as conflict:
        api.create_commit(REPO, [add("b")], commit_message="second", parent_commit=parent)
    assert status(conflict) == 412
    hub.faults.add("conflict", path="/commit/")
    with pytest.raises(HfHubHTTPError) as race:
        api.create_commit(REPO, [add("c")], commit_message="third", parent_commit=first.oid)
    assert status(race) == 412
    assert [c.title for c in api.list_repo_commits(REPO)] == ["A commit of somebody else", "first", "initial commit"]


def test_of_writers_with_one_parent_one_wins(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO)
    parent = api.repo_info(REPO).sha

    def write(n: int) -> bool:
        try:
            api.create_commit(REPO, [add(f"{n}.bin", b"\0%d" % n)], commit_message=f"{n}", parent_commit=parent)
        except HfHubHTTPError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(write, range(6))) == 1
    assert len(api.list_repo_commits(REPO)) == 2
    assert [seen.status for seen in hub.requests if "/commit/" in seen.path].count(412) == 5


def test_a_lost_answer_leaves_the_commit_made_once(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.add("lost", method="POST", path="/commit/main")
    with pytest.raises(Exception, match="disconnected"):
        api.create_commit(REPO, [add("a")], commit_message="round 7")
    assert [c.title for c in api.list_repo_commits(REPO)] == ["round 7", "initial commit"]


def test_a_client_that_breaks_off_leaves_no_half_commit(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO)
    hub.faults.add("drop", method="POST", path="/commit/main", after_bytes=60)
    with pytest.raises(Exception, match=r"disconnected|[Cc]onnection|[Bb]roken"):
        api.create_commit(REPO, [add("a"), add("b")], commit_message="half")
    assert api.list_repo_files(REPO) == [".gitattributes"]


def test_a_tag_is_made_once_and_names_a_commit(api: HfApi) -> None:
    api.create_repo(REPO)
    sha = api.create_commit(REPO, [add("a")], commit_message="a").oid
    api.create_tag(REPO, tag="run/1.0", revision=sha, tag_message="round 1")
    with pytest.raises(HfHubHTTPError) as conflict:
        api.create_tag(REPO, tag="run/1.0")
    assert status(conflict) == 409
    api.create_commit(REPO, [add("b")], commit_message="b")
    assert api.repo_info(REPO, revision="run/1.0").sha == sha
    refs = api.list_repo_refs(REPO)
    assert [(t.name, t.target_commit) for t in refs.tags] == [("run/1.0", sha)]
    assert [b.ref for b in refs.branches] == ["refs/heads/main"]
    api.delete_tag(REPO, tag="run/1.0")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="run/1.0")


def test_branches_part_and_end(api: HfApi) -> None:
    api.create_repo(REPO)
    api.create_branch(REPO, branch="other")
    api.create_commit(REPO, [add("a")], commit_message="a", revision="other")
    assert api.file_exists(REPO, "a", revision="other") and not api.file_exists(REPO, "a")
    api.delete_branch(REPO, branch="other")
    assert not api.revision_exists(REPO, "other")


def test_long_lists_come_in_pages(hub: TestHub, api: HfApi) -> None:
    hub.put("models", REPO, {f"f{n:02d}/x.txt": b"%d" % n for n in range(25)})
    for n in range(12):
        hub.put("models", REPO, {"n": b"%d" % n}, message=f"commit {n}")
    assert len(api.list_repo_commits(REPO)) == 14
    assert len(list(api.list_repo_tree(REPO, recursive=True))) == 25 * 2 + 2
    assert len(list(api.list_repo_tree(REPO))) == 25 + 2
    assert [item.path for item in api.list_repo_tree(REPO, "f03")] == ["f03/x.txt"]
    last = {item.path: item.last_commit for item in api.list_repo_tree(REPO, expand=True)}
    assert last["n"] and last["n"].title == "commit 11" and last["f07"] and last["f07"].title == "put"
    infos = api.get_paths_info(REPO, ["n", "f03", "missing"])
    assert [info.path for info in infos] == ["n", "f03"]


def test_a_squash_forgets_what_no_tag_keeps(api: HfApi, tmp_path: Path, hub: TestHub) -> None:
    shas = [hub.put("models", REPO, {"w.bin": b"\0%d" % n}, message=str(n)) for n in range(3)]
    api.create_tag(REPO, tag="kept", revision=shas[1])
    api.super_squash_history(REPO, commit_message="squashed")
    assert [c.title for c in api.list_repo_commits(REPO)] == ["squashed"]
    assert [c.title for c in api.list_repo_commits(REPO, revision="kept")] == ["1", "0", "initial commit"]
    kept = hf_hub_download(REPO, "w.bin", revision="kept", endpoint=hub.endpoint, cache_dir=tmp_path)
    assert Path(kept).read_bytes() == b"\x001"
    assert not api.revision_exists(REPO, shas[2])


def test_objects_are_listed_and_deleted_for_good(hub: TestHub, api: HfApi) -> None:
    for n in range(3):
        hub.put("models", REPO, {"w.bin": b"\0%d" % n, "n.txt": b"%d" % n}, message=str(n))
    objects = list(api.list_lfs_files(REPO))
    assert [item.filename for item in objects] == ["w.bin"] * 3
    before = [c.commit_id for c in api.list_repo_commits(REPO)]
    api.permanently_delete_lfs_files(REPO, objects[:1])
    after = [c.commit_id for c in api.list_repo_commits(REPO)]
    assert after[-1:] == before[-1:] and not set(after[:-1]) & set(before)
    assert not hub.store.blobs.has(objects[0].oid) and hub.store.blobs.has(objects[1].oid)
    assert [api.file_exists(REPO, "w.bin", revision=sha) for sha in after] == [True, True, False, False]


def test_a_private_repository_is_missing_for_strangers(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO, private=True)
    anonymous, stranger = HfApi(endpoint=hub.endpoint, token=False), HfApi(endpoint=hub.endpoint, token="hf_stranger")
    for outsider, code in ((anonymous, 401), (stranger, 404)):
        with pytest.raises(RepositoryNotFoundError) as missing:
            outsider.repo_info(REPO)
        assert status(missing) == code
    assert HfApi(endpoint=hub.endpoint, token="hf_reader").repo_info(REPO).private
    api.update_repo_settings(REPO, visibility="public")
    assert anonymous.list_repo_files(REPO) == [".gitattributes"]


def test_who_may_not_write_is_told_so(hub: TestHub, api: HfApi) -> None:
    api.create_repo(REPO)
    for token, code in (("hf_reader", 403), ("hf_stranger", 403), ("hf_unknown", 401), (False, 401)):
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=hub.endpoint, token=token).create_commit(REPO, [add("a")], commit_message="a")
        assert status(refused) == code
    reader = HfApi(endpoint=hub.endpoint, token="hf_reader").whoami()
    assert reader["auth"]["accessToken"]["role"] == "read" and reader["orgs"][0]["name"] == "org"


def test_a_restart_keeps_everything(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    sha = hub.put("datasets", "org/data", {"x.parquet": b"PAR1", "y": b"y"}, tag="v1")
    hub.stop()
    with pytest.raises(Exception, match=r"[Cc]onnect"):
        api.repo_info("org/data", repo_type="dataset")
    with TestHub(tmp_path / "hub", port=hub.port, settings=Settings(TOKENS)):
        info = api.dataset_info("org/data", revision="v1", files_metadata=True)
        assert info.sha == sha and [s.size for s in info.siblings or []][1:] == [4, 1]
