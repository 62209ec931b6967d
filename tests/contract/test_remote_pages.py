"""What only a remote PageSource has to promise: bad lines, rate limits, addresses that expire, tokens, the cache."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hub import Settings, TestHub, User

from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.page_file import PageTable, open_page_table, write_page_table
from distributed_training.data.pages import Dataset, PageColumns, page_digest
from distributed_training.data.places.cache import ChunkCache
from distributed_training.data.places.ranges import Limits
from distributed_training.data.reading import TablePages
from distributed_training.data.remote import hub_page_table, open_pages, open_remote
from distributed_training.errors import ConfigError, DataUnavailable

QUICK = Limits(tries=5, total_s=20.0, pause_s=0.01)
TOKENS = {"hf_test": User("tester", "write", ("org",)), "hf_other": User("other", "write")}
PARQUET = r"\.parquet$"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = tmp_path_factory.mktemp("text")
    for number in range(64):
        (text / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(3_000)))
    out = tmp_path_factory.mktemp("pages")
    build_pages(out, text, num_pages=None, page_bytes=2_000, heldout_bytes=8_000)
    return out


class Wire:
    """A hub with the pages as a data set."""

    def __init__(self, root: Path, pages: Path, **settings: Any) -> None:
        self.hub = TestHub(root, settings=Settings(TOKENS, **settings))
        self.sha = self.hub.put("datasets", "org/pages", {path.name: path for path in pages.iterdir()})
        self.table = open_page_table(pages / "pages.bin")
        self.local = LocalPages(pages)

    def open(self, cache: ChunkCache | None = None, **options: Any) -> TablePages:
        options = {"endpoint": self.hub.endpoint, "limits": QUICK, "token": "hf_test"} | options
        places = options.pop("places", [f"hub:org/pages@{self.sha}"])
        return open_remote(options.pop("table", self.table), places, cache=cache, **options)


@pytest.fixture
def wire(tmp_path: Path, pages: Path) -> Iterator[Wire]:
    made = Wire(tmp_path / "hub", pages)
    with made.hub:
        yield made


def test_a_page_is_one_request_and_not_a_byte_more(wire: Wire) -> None:
    source = wire.open()
    wire.hub.traffic.reset()
    for index in range(200):
        assert source.fetch(index) == wire.local.fetch(index)
    stats = wire.hub.traffic.stats()
    assert stats["requests.cdn"] == 200
    assert stats["requests.resolve"] == len({wire.table.entry(index).file for index in range(200)}) - 1 == 1
    assert stats["bytes.cdn"] == sum(wire.table.entry(index).length for index in range(200))
    assert stats["leaks"] == []
    assert source.counts == {"data set org/pages": 200}


def test_a_token_is_shown_to_the_hub_and_to_nobody_else(wire: Wire) -> None:
    wire.hub.put("datasets", "org/secret", {"a.parquet": b"x" * 100}, private=True)
    source = wire.open()
    source.fetch(0)
    by_bucket = {(seen.bucket, seen.authorized) for seen in wire.hub.requests}
    assert by_bucket == {("resolve", True), ("cdn", False)}
    assert wire.hub.traffic.leaks == []


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop", "path": "/cdn/", "after_bytes": 100},
        {"kind": "drop", "path": "/cdn/"},
        {"kind": "reset", "path": "/cdn/", "after_bytes": 100},
        {"kind": "truncate", "path": "/cdn/", "after_bytes": 100},
        {"kind": "wrong_bytes", "path": "/cdn/", "after_bytes": 40},
        {"kind": "wrong_bytes", "path": "/cdn/", "after_bytes": 1},
        {"kind": "unavailable", "path": "/cdn/", "times": 3},
        {"kind": "expired", "path": "/cdn/"},
        {"kind": "expired", "path": "/cdn/", "times": 3},
        {"kind": "rate_limit", "path": "/cdn/"},
        {"kind": "rate_limit", "path": "/resolve/"},
        {"kind": "down", "path": "/resolve/", "times": 2},
    ],
    ids=lambda fault: f"{fault['kind']} {fault.get('after_bytes', '')} {fault['path'].strip('/')}",
)
def test_a_fault_costs_a_request_and_no_page(wire: Wire, fault: dict[str, Any]) -> None:
    source = wire.open()
    last = wire.table.num_pages - 1  # in another file than the one that opening looked at
    injected = wire.hub.faults.add(**fault)
    assert source.fetch(last) == wire.local.fetch(last)
    assert injected.fired == fault.get("times", 1)
    assert wire.hub.traffic.leaks == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kind": "drop", "after_bytes": 100}, "RemoteProtocolError|ReadError"),
        ({"kind": "truncate", "after_bytes": 100}, "sent .*100"),
        ({"kind": "wrong_bytes", "after_bytes": 40}, "digest|decoded"),
        ({"kind": "unavailable"}, "503"),
        ({"kind": "expired"}, "403 from a signed address"),
        ({"kind": "rate_limit", "seconds": 60}, "429|wait"),
    ],
)
def test_a_fault_that_stays_is_said_in_one_line(wire: Wire, fault: dict[str, Any], said: str) -> None:
    source = wire.open()
    wire.hub.faults.add(path="/cdn/", times=None, **fault)
    began = time.monotonic()
    for index in (0, 1):
        with pytest.raises(DataUnavailable, match=rf"page {index} in .*({said})") as caught:
            source.fetch(index)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 5.0
    wire.hub.faults.clear()
    if fault["kind"] != "rate_limit":
        assert source.fetch(0) == wire.local.fetch(0)


def test_a_rate_limit_is_waited_for_by_all_readers(wire: Wire) -> None:
    source = wire.open()
    wire.hub.faults.add("rate_limit", path="/cdn/", seconds=1)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.fetch, range(4))) == [wire.local.fetch(index) for index in range(4)]
    assert time.monotonic() - began >= 1.0
    assert wire.hub.traffic.stats()["status.429"] == 1


def test_requests_have_a_budget(wire: Wire) -> None:
    source = wire.open(limits=Limits(total_s=0.5, tries=2, requests_a_window=1))
    assert source.fetch(0) == wire.local.fetch(0)  # its address is known since opening
    with pytest.raises(DataUnavailable, match="the 1 requests of 5 minutes are made"):
        source.fetch(wire.table.num_pages - 1)


def test_addresses_are_used_until_they_expire(tmp_path: Path, pages: Path) -> None:
    made = Wire(tmp_path / "hub", pages, url_lifetime_s=5.5)
    with made.hub:
        source = made.open()
        for _ in range(3):
            source.fetch(0)
        assert made.hub.traffic.stats()["requests.resolve"] == 1
        time.sleep(0.6)
        source.fetch(0)  # half a second before it does, it is not used any more
        stats = made.hub.traffic.stats()
        assert (stats["requests.resolve"], stats.get("status.403")) == (2, None)


def test_many_threads_ask_once_for_an_address(wire: Wire) -> None:
    source = wire.open()
    wire.hub.traffic.reset()
    last = wire.table.num_pages - 1
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(source.fetch, [last] * 64)) == {wire.local.fetch(last)}
    assert wire.hub.traffic.stats()["requests.resolve"] == 1


def test_what_is_not_there_is_named_at_opening(wire: Wire) -> None:
    table, sha = wire.table, wire.sha
    wire.hub.put("datasets", "org/secret", {"pages-00000.parquet": b"x" * 100}, private=True)
    wire.hub.put("datasets", "org/empty", {"README.md": b"nothing"})
    secret = wire.hub.put("datasets", "org/secret", {"b": b"x"}, private=True)
    for place, token, said in [
        (f"hub:org/unknown@{sha}", "hf_test", "org/unknown does not exist, or is private.*hf auth login.*HF_TOKEN"),
        (f"hub:org/secret@{secret}", "hf_other", "org/secret does not exist, or is private"),
        (f"hub:org/pages@{'0' * 40}", "hf_test", "no commit 0000"),
        (f"hub:org/empty@{wire.hub.put('datasets', 'org/empty', {'b': b'x'})}", "hf_test", "no file pages-00000"),
        ("hub:org/pages@main", "hf_test", "commit of 40 hex digits"),
        ("hub:pages", "hf_test", "hub:ORG/NAME@COMMIT"),
        ("/no/such/place", "hf_test", "directory that exists"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            open_remote(table, [place], endpoint=wire.hub.endpoint, token=token, limits=QUICK)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="names no data set"):
        open_remote(table, [])


def test_a_hub_that_is_down_is_no_mistake_of_the_user(wire: Wire) -> None:
    wire.hub.stop()
    source = wire.open(limits=Limits(tries=2, pause_s=0.01))
    with pytest.raises(DataUnavailable, match=r"page 0 in .*ConnectError"):
        source.fetch(0)
    wire.hub.start()
    assert source.fetch(0) == wire.local.fetch(0)


def test_places_are_asked_in_order_and_the_table_names_the_last(wire: Wire, pages: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    columns = wire.table.columns
    dataset = Dataset(repo="org/pages", revision=wire.sha)
    header = wire.table.header.model_copy(update={"dataset": dataset})
    table = write_page_table(tmp_path / "pages.bin", header, columns)
    source = wire.open(table=table, places=[str(empty)])
    assert source.fetch(3) == wire.local.fetch(3)
    assert source.counts == {f"{empty} failed": 1, "data set org/pages": 1}
    mirror = wire.open(table=table, places=[str(pages)])
    wire.hub.stop()
    assert mirror.fetch(3) == wire.local.fetch(3)
    with pytest.raises(DataUnavailable, match=rf"page 3 in .*{empty}: .*; data set org/pages: "):
        source.fetch(3)


def test_pages_without_a_digest_are_believed_for_the_commit(wire: Wire, tmp_path: Path) -> None:
    entries = [(wire.table.entry(index), wire.table.digest(index) if index % 2 else None) for index in range(8)]
    header = wire.table.header.model_copy(update={"dataset": Dataset(repo="org/pages", revision=wire.sha)})
    table = write_page_table(tmp_path / "pages.bin", header, PageColumns.of(entries))
    assert table.missing_digests == 4
    source = wire.open(ChunkCache(tmp_path / "cache", table.sha256, 1 << 20), table=table, places=[])
    for _ in range(2):
        for index in range(8):
            page = source.fetch(index)
            assert page == wire.local.fetch(index)
            assert page.digest == page_digest(page.documents)
    assert source.heldout() == wire.local.heldout()


def without_digests(wire: Wire, pages: Path, folder: Path) -> PageTable:
    """The same pages, all of them believed for the commit."""
    entries = [(wire.table.entry(index), None) for index in range(wire.table.num_pages)]
    header = wire.table.header.model_copy(update={"dataset": Dataset(repo="org/pages", revision=wire.sha)})
    return write_page_table(folder / "bare.bin", header, PageColumns.of(entries))


def test_a_page_without_a_digest_is_not_believed_from_anybody(wire: Wire, pages: Path, tmp_path: Path) -> None:
    table = without_digests(wire, pages, tmp_path)
    forged = tmp_path / "forged"
    shutil.copytree(pages, forged)
    name, at = table.header.files[table.entry(0).file].name, table.entry(0).offset + 60
    data = bytearray((pages / name).read_bytes())
    data[at : at + 20] = bytes(byte ^ 1 for byte in data[at : at + 20])  # a page of another text and the same size
    (forged / name).write_bytes(data)
    mirror = wire.hub.put("datasets", "org/mirror", {path.name: path for path in forged.iterdir()})
    url = f"{wire.hub.endpoint}/datasets/org/mirror/resolve/{mirror}"
    places = [str(forged), url, f"hub:org/mirror@{mirror}"]
    source = wire.open(ChunkCache(tmp_path / "cache", table.sha256, 1 << 20), table=table, places=places)
    for index in range(4):
        assert source.fetch(index) == wire.local.fetch(index)
    assert source.counts == {"data set org/pages": 4}
    wire.hub.stop()
    with pytest.raises(DataUnavailable, match=rf"{forged}: not asked for a page without a digest, its .*; http.*: not"):
        source.fetch(9)


def test_a_folder_proves_its_file_once(wire: Wire, pages: Path, tmp_path: Path) -> None:
    table = without_digests(wire, pages, tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(pages, copy)
    wire.hub.stop()
    source = wire.open(table=table, places=[str(copy)], limits=Limits(tries=1))
    assert source.fetch(0) == wire.local.fetch(0) and source.counts == {str(copy): 1}
    path = copy / table.header.files[table.entry(0).file].name
    data, facts = path.read_bytes(), path.stat()
    path.write_bytes(data[:-1] + b"?")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    with pytest.raises(DataUnavailable, match="is not proven"):
        source.fetch(0)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 2))
    assert source.fetch(0) == wire.local.fetch(0)


@pytest.mark.parametrize("offline", [False, True], ids=["gone", "offline"])
def test_a_node_starts_without_the_data_set_if_it_has_the_pages(
    wire: Wire, pages: Path, tmp_path: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(wire.table.entry(index), wire.table.digest(index)) for index in range(4)]
    gone = Dataset(repo="org/pages" if offline else "org/gone", revision=wire.sha)
    header = wire.table.header.model_copy(update={"dataset": gone})
    table = write_page_table(tmp_path / "bare.bin", header, PageColumns.of(entries))
    cache = ChunkCache(tmp_path / "cache", table.sha256, 1 << 20)
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    for places in ([], [str(tmp_path / "empty")], [f"hub:{gone.repo}@{gone.revision}"]):
        with pytest.raises(ConfigError, match="offline mode" if offline else "org/gone does not exist"):
            wire.open(cache, table=table, places=places)
    assert wire.open(table=table, places=[str(pages)]).fetch(3) == wire.local.fetch(3)
    for index in range(4):
        cache.put(str(index), wire.local.kept(index) or b"")
    assert [wire.open(cache, table=table, places=[]).fetch(index) for index in range(4)] == [
        wire.local.fetch(index) for index in range(4)
    ]


def test_a_mirror_that_has_nothing_stops_nobody(wire: Wire, tmp_path: Path) -> None:
    places = [f"{wire.hub.endpoint}/nowhere", f"hub:org/none@{wire.sha}", f"hub:org/pages@{wire.sha}"]
    assert wire.open(places=places).fetch(0) == wire.local.fetch(0)


def test_the_last_resort_is_asked_last_and_checked(wire: Wire, tmp_path: Path) -> None:
    asked: list[int] = []

    def peers(index: int) -> Iterator[bytes]:
        asked.append(index)
        yield b"no chunk at all"
        if index != 2:
            yield wire.local.kept(1) or b""

    source = wire.open(ChunkCache(tmp_path, wire.table.sha256, 1 << 20), last_resort=peers, limits=Limits(tries=1))
    assert source.fetch(0) == wire.local.fetch(0)
    wire.hub.stop()
    assert [source.fetch(index) for index in (0, 1, 1)] == [wire.local.fetch(index) for index in (0, 1, 1)]
    assert source.kept(1) == wire.local.kept(1)
    assert source.kept(4) is None
    for index, tried in ((2, 1), (3, 2)):
        with pytest.raises(DataUnavailable, match=f"page {index} in .*the last resort gave {tried} chunks"):
            source.fetch(index)
    assert asked == [1, 2, 3]


def test_the_cache_is_read_first_and_what_was_altered_is_fetched_again(wire: Wire, tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path / "cache", wire.table.sha256, 1 << 20)
    source = wire.open(cache)
    for index in range(6):
        source.fetch(index)
    source.heldout()
    wire.hub.traffic.reset()
    again = wire.open(ChunkCache(tmp_path / "cache", wire.table.sha256, 1 << 20))
    assert [again.fetch(index) for index in range(6)] == [wire.local.fetch(index) for index in range(6)]
    assert again.heldout() == wire.local.heldout()
    assert again.counts == {"cache": 7}
    folder = tmp_path / "cache" / wire.table.sha256[:32]
    (folder / "0").write_bytes((folder / "0").read_bytes()[:-1])
    (folder / "1").write_bytes(b"")
    data = bytearray((folder / "2").read_bytes())
    data[-1] ^= 1
    (folder / "2").write_bytes(data)
    (folder / "3").write_bytes((folder / "4").read_bytes())  # a right entry at a wrong place
    assert [again.fetch(index) for index in range(6)] == [wire.local.fetch(index) for index in range(6)]
    assert again.counts == {"cache": 9, "data set org/pages": 4}
    assert [again.fetch(index) for index in range(4)] == [wire.local.fetch(index) for index in range(4)]
    assert again.counts["cache"] == 13


def test_the_manifest_may_lie_beside_the_pages(wire: Wire, tmp_path: Path) -> None:
    options: dict[str, Any] = {"endpoint": wire.hub.endpoint, "token": "hf_test", "cache_dir": tmp_path / "hf"}
    assert hub_page_table(Dataset(repo="org/pages", revision=wire.sha), **options).sha256 == wire.table.sha256
    with pytest.raises(ConfigError, match=r"pages\.bin of data set org/none at"):
        hub_page_table(Dataset(repo="org/none", revision=wire.sha), **options)


def test_pages_are_opened_by_what_a_person_names(wire: Wire, pages: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"endpoint": wire.hub.endpoint, "token": "hf_test", "cache_dir": tmp_path / "cache"}
    options |= {"cache_bytes": 1 << 30}
    hub = f"hub:org/pages@{wire.sha}"
    bare = tmp_path / "pages.bin"
    bare.write_bytes((pages / "pages.bin").read_bytes())
    for where, mirrors, counted in [
        (str(pages), [], str(pages)),
        (str(tmp_path), [hub], "data set org/pages"),
        (hub, [], "cache"),
        (str(bare), [str(pages)], "cache"),
    ]:
        source = open_pages(where, mirrors, **options)
        assert source.fetch(7) == wire.local.fetch(7)
        assert source.counts == {counted: 1}
    for where, said in [(str(tmp_path / "none"), "cannot read"), (str(bare), "names no data set"), ("hub:x", "COMMIT")]:
        with pytest.raises(ConfigError, match=said):
            open_pages(where, **options)


def test_hundreds_of_pages_over_a_bad_line(wire: Wire) -> None:
    """The short form of `scripts/bench.py data --pages 10000`: every page right, none twice, memory flat."""
    source = wire.open()
    for number, kind in enumerate(("drop", "truncate", "rate_limit", "expired", "wrong_bytes")):
        wire.hub.faults.add(kind, path="/cdn/", share=0.03, times=None, seed=number, after_bytes=50)
    count, digests = wire.table.num_pages, Counter[bytes]()
    assert count >= 300
    with ThreadPoolExecutor(8) as pool:
        for index, page in enumerate(pool.map(source.fetch, range(count))):
            assert page == wire.local.fetch(index)
            digests[page.digest] += 1
            if index == 100:
                before = psutil.Process().memory_info().rss
    assert set(digests.values()) == {1}
    assert psutil.Process().memory_info().rss - before < 16 << 20  # pyright: ignore[reportPossiblyUnboundVariable]
    fired = sum(fault["fired"] for fault in wire.hub.faults.to_json())
    assert fired >= 20
