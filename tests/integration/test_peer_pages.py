"""Pages from peers: a node whom no place gives a page asks others, and believes only what hashes right."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.places.base import Directory
from distributed_training.data.reading import TablePages
from distributed_training.data.remote import open_pages
from distributed_training.errors import ConfigError, DataUnavailable
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import BlockRef, Commitment, Neuron, Role, Roster
from distributed_training.roles.pages import PAGE_METHOD, PIECE_BYTES, PageService, PeerPages, share_pages

OURS = bytes(8)  # the run
Make = Callable[[int], Awaitable[list[PeerBook]]]


@pytest.fixture
def local(tmp_path: Path) -> LocalPages:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text("".join(f"{number} {line}\n" for line in range(800)))
    build_pages(tmp_path / "pages", text, num_pages=None, page_bytes=4_000, heldout_bytes=4_000, min_pages=8)
    return LocalPages(tmp_path / "pages")


@pytest.fixture
async def nodes() -> AsyncIterator[Make]:
    """Started nodes that know each other, all but the last one, which is on nobody's roster."""
    switch, started = MemorySwitch(), list[MemoryTransport]()

    async def make(count: int) -> list[PeerBook]:
        books, neurons = [], []
        for number in range(count):
            identity = PeerIdentity(bytes([number]) * 32)
            transport = MemoryTransport(switch, identity.public_key)
            book = PeerBook(transport, 1, bytes([number]) * 32, identity.sign, verify_peer)
            claim = Commitment(Role.MINER, True, identity.public_key, OURS, None, None, None, None)
            neurons.append(
                Neuron(
                    number,
                    str(number),
                    bytes([number]) * 32,
                    0.0,
                    False,
                    1,
                    ("127.0.0.2", 1),
                    claim,
                    1,
                    0,
                    0,
                    0,
                    bytes(32),
                )
            )
            await transport.start()
            started.append(transport)
            books.append(book)
        known, everybody = (Roster(BlockRef(1, bytes(32)), tuple(them)) for them in (neurons[:-1], neurons))
        for book in books:
            book.update(everybody if book is books[-1] else known)
        return books

    yield make
    for transport in started:
        await transport.stop()


def poor(local: LocalPages, book: PeerBook, empty: Path, timeout_s: float = 5.0) -> TablePages:
    """A source without any page, whose last resort are the peers."""
    empty.mkdir(exist_ok=True)
    source = TablePages(local.table, [Directory(empty)])
    loop, length = asyncio.get_running_loop(), lambda index: local.table.entry(index).length
    source.last_resort = PeerPages(book, loop, local.sha256, length, OURS, timeout_s=timeout_s)
    return source


async def test_a_page_that_nobody_else_gives_comes_from_a_peer(local: LocalPages, nodes: Make, tmp_path: Path) -> None:
    asking, holding, _ = await nodes(3)
    PageService(holding, local.sha256, local.num_pages, local.kept)
    source = poor(local, asking, tmp_path / "empty")
    for index in (0, 5, local.num_pages - 1):
        assert await asyncio.to_thread(source.fetch, index) == local.fetch(index)
    assert source.counts["last resort"] == 3


async def test_the_heldout_set_comes_from_peers_too_to_a_node_that_has_pages_bin_alone(
    local: LocalPages, nodes: Make, tmp_path: Path
) -> None:
    asking, holding, _ = await nodes(3)
    share_pages(holding, local, OURS, "")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "pages" / "pages.bin", tmp_path / "alone")
    source = open_pages(str(tmp_path / "alone"), cache_dir=tmp_path / "cache", cache_bytes=1 << 20, peers_give=True)
    share_pages(asking, source, OURS, "")
    for _ in range(2):
        assert await asyncio.to_thread(source.heldout) == local.heldout()
        assert await asyncio.to_thread(source.fetch, 3) == local.fetch(3)
    pieces = len(local.table.header.heldout) + 1
    assert source.counts == {"last resort": pieces, "cache": pieces}, "the second time from our own disk"
    with pytest.raises(ConfigError, match="names no data set"):
        open_pages(str(tmp_path / "alone"), cache_bytes=1)  # nobody said that there are peers


async def test_a_large_page_comes_in_pieces(nodes: Make) -> None:
    asking, holding, _ = await nodes(3)
    chunk = random.Random(0).randbytes(2 * PIECE_BYTES + 7)
    PageService(holding, "ab" * 32, 9, lambda index: chunk)
    peers = PeerPages(asking, asyncio.get_running_loop(), "ab" * 32, lambda index: len(chunk) - index, OURS)
    assert await asyncio.to_thread(lambda: list(peers(0))) == [chunk]
    assert await asyncio.to_thread(lambda: list(peers(1))) == [], "of another length than the manifest says"


async def test_peers_that_lie_hang_or_have_nothing_are_passed_over(
    local: LocalPages, nodes: Make, tmp_path: Path
) -> None:
    asking, lying, hanging, empty, holding, _ = await nodes(6)

    async def lie(stream: Stream) -> None:
        await lying.accept(stream, 5)
        chunk = bytearray(local.kept(0) or b"")
        chunk[60] ^= 1
        await stream.write(len(chunk).to_bytes(4, "little"), 5)
        await stream.write(bytes(chunk), 5)

    async def hang(stream: Stream) -> None:
        await asyncio.sleep(3600)

    lying.transport.serve(PAGE_METHOD, lie)
    hanging.transport.serve(PAGE_METHOD, hang)
    PageService(empty, local.sha256, local.num_pages, lambda index: None)
    source = poor(local, asking, tmp_path / "empty", timeout_s=0.5)
    with pytest.raises(DataUnavailable, match=r"page 0 in .*the last resort gave 1 chunks, none of them it"):
        await asyncio.to_thread(source.fetch, 0)
    PageService(holding, local.sha256, local.num_pages, local.kept)
    assert await asyncio.to_thread(source.fetch, 0) == local.fetch(0)


async def test_strangers_and_other_manifests_get_nothing(local: LocalPages, nodes: Make, tmp_path: Path) -> None:
    asking, holding, stranger = await nodes(3)
    reads: list[int] = []

    def kept(index: int) -> bytes | None:
        reads.append(index)
        return local.kept(index)

    PageService(holding, local.sha256, local.num_pages, kept)
    with pytest.raises(DataUnavailable, match="gave 0 chunks"):
        await asyncio.to_thread(poor(local, stranger, tmp_path / "empty", 0.5).fetch, 0)
    other = PeerPages(asking, asyncio.get_running_loop(), "ab" * 32, lambda index: 100, OURS, timeout_s=0.5)
    assert await asyncio.to_thread(lambda: list(other(0))) == []
    beyond = PeerPages(asking, asyncio.get_running_loop(), local.sha256, lambda index: 100, OURS, timeout_s=0.5)
    assert await asyncio.to_thread(lambda: list(beyond(local.num_pages))) == []
    assert reads == []


async def test_a_node_that_ends_asks_nobody(local: LocalPages, nodes: Make, tmp_path: Path) -> None:
    asking, hanging, _ = await nodes(3)

    async def hang(stream: Stream) -> None:
        await asyncio.sleep(3600)

    hanging.transport.serve(PAGE_METHOD, hang)
    source = poor(local, asking, tmp_path / "empty")
    fetching = asyncio.create_task(asyncio.to_thread(source.fetch, 0))
    asked: list[asyncio.Task[object]] = []
    while not asked:
        await asyncio.sleep(0.01)
        asked = [task for task in asyncio.all_tasks() if "PeerPages._ask" in repr(task.get_coro())]
    asked[0].cancel()  # as the end of a loop does
    with pytest.raises(DataUnavailable, match="gave 0 chunks"):
        await fetching

    ended = asyncio.new_event_loop()
    ended.close()
    source.last_resort = PeerPages(asking, ended, local.sha256, lambda index: 100, OURS)
    with pytest.raises(DataUnavailable, match="gave 0 chunks"):
        await asyncio.to_thread(source.fetch, 0)


async def test_nodes_of_other_runs_are_not_asked_and_who_speaks_for_the_run_always_is(nodes: Make) -> None:
    """The owner's node alone has the pages of a new run, and may be one of many nodes, most of them of other runs."""
    books = await nodes(12)
    asking, speaker = books[0], books[1]
    PageService(speaker, "ab" * 32, 99, lambda index: b"a page")
    loop, run_key = asyncio.get_running_loop(), (bytes([1]) * 32).hex()
    peers = PeerPages(asking, loop, "ab" * 32, lambda index: 6, OURS, run_key, timeout_s=0.5)
    for index in range(11):
        assert await asyncio.to_thread(lambda index=index: list(peers(index))) == [b"a page"]
    foreign = PeerPages(asking, loop, "ab" * 32, lambda index: 6, b"another.", run_key)
    assert await asyncio.to_thread(lambda: list(foreign(0))) == []
