"""What every PageSource promises, over all adapters. A new adapter adds a `Setup` to SETUPS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hub import Settings, TestHub

from distributed_training.data.base import PageSource
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.page_file import open_page_table
from distributed_training.data.pages import page_digest
from distributed_training.data.places.ranges import Limits
from distributed_training.data.remote import open_remote
from distributed_training.errors import DataUnavailable


@dataclass(frozen=True)
class Case:
    """A source with at least 4 pages, and ways to damage the store behind it."""

    source: PageSource
    reopen: Callable[[], PageSource]
    flip_bytes: Callable[[], None]  # the documents of page 0 change, sizes stay
    remove: Callable[[], None]  # nothing can be read any more


def build(tmp_path: Path) -> Path:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(2_000)))
    build_pages(tmp_path / "pages", text, num_pages=None, page_bytes=8_000, heldout_bytes=8_000, min_pages=4)
    return tmp_path / "pages"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(byte ^ 1 for byte in data[60:80])
    path.write_bytes(data)


def local(tmp_path: Path) -> Iterator[Case]:
    out = build(tmp_path)

    def remove() -> None:
        for path in out.glob("*.parquet"):
            path.unlink()

    yield Case(LocalPages(out), lambda: LocalPages(out), lambda: flip(out / "pages-00000.parquet"), remove)


def remote(tmp_path: Path, place: str = "hub:org/pages@{sha}") -> Iterator[Case]:
    """Through the hub of the tests: its protocol, or (a mirror) addresses with the same files."""
    out = build(tmp_path)
    table = open_page_table(out / "pages.bin")
    with TestHub(tmp_path / "hub", settings=Settings(lfs_over_bytes=1_000)) as hub:
        sha = hub.put("datasets", "org/pages", {path.name: path for path in out.iterdir()})
        name = place.format(sha=sha, endpoint=hub.endpoint)

        def opened() -> PageSource:
            return open_remote(table, [name], endpoint=hub.endpoint, limits=Limits(tries=2, pause_s=0.01))

        def flip_bytes() -> None:
            digest = next(file.sha256 for file in table.header.files if file.name == "pages-00000.parquet")
            flip(hub.store.blobs.path(digest or ""))

        yield Case(opened(), opened, flip_bytes, hub.stop)


SETUPS = {
    "local": local,
    "remote": remote,
    "mirror": partial(remote, place="{endpoint}/datasets/org/pages/resolve/{sha}"),
}


@pytest.fixture(params=SETUPS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    yield from SETUPS[request.param](tmp_path)


def test_pages_carry_their_index_and_digest(case: Case) -> None:
    assert case.source.num_pages >= 4
    for index in range(case.source.num_pages):
        page = case.source.fetch(index)
        assert page.index == index
        assert page.documents
        assert page.digest == page_digest(page.documents)


def test_fetch_is_idempotent_and_the_same_for_another_reader(case: Case) -> None:
    other = case.reopen()
    assert other.sha256 == case.source.sha256
    assert len(bytes.fromhex(case.source.sha256)) == 32
    for index in (0, 3, 0):
        assert case.source.fetch(index) == other.fetch(index)
    assert case.source.heldout() == other.heldout()


def test_reads_are_thread_safe(case: Case) -> None:
    indices = [index % case.source.num_pages for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(case.reopen().fetch, indices))
    assert pages == [case.source.fetch(index) for index in indices]


def test_heldout_shares_no_document_with_the_pages(case: Case) -> None:
    heldout = set(case.source.heldout())
    assert heldout
    for index in range(case.source.num_pages):
        assert heldout.isdisjoint(case.source.fetch(index).documents)


def test_an_index_outside_is_the_callers_mistake(case: Case) -> None:
    for index in (-1, case.source.num_pages):
        with pytest.raises(IndexError):
            case.source.fetch(index)


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "after a read"])
def test_changed_bytes_are_unavailable(case: Case, warm: bool) -> None:
    source = case.source if warm else case.reopen()
    if warm:
        source.fetch(0)
    case.flip_bytes()
    with pytest.raises(DataUnavailable, match="page 0"):
        source.fetch(0)


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "after a read"])
def test_missing_bytes_are_unavailable(case: Case, warm: bool) -> None:
    source = case.source if warm else case.reopen()
    if warm:
        source.fetch(1)
    case.remove()
    with pytest.raises(DataUnavailable, match="page 1"):
        source.fetch(1)
    with pytest.raises(DataUnavailable, match="held-out"):
        source.heldout()
