"""A run's files by content, from peers that give, stop, lie or are away: believed is what hashes right."""

from __future__ import annotations

import asyncio
import hashlib
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from samples import commitment, key, neuron, roster
from test_finding_choice import run_of

from distributed_training import runs
from distributed_training.errors import ConfigError, LocalFault, NetworkFault
from distributed_training.finding import serving
from distributed_training.finding.content import Source, Wanted, fetch
from distributed_training.finding.find import Finder, runs_command
from distributed_training.finding.serving import FileService, PeerSource
from distributed_training.network.base import Stream, Transport
from distributed_training.network.budgets import Bucket
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role
from distributed_training.settings.config import NodeConfig

DATA = bytes(range(256)) * 5_000  # five pieces
WANTED = Wanted("pages.bin", hashlib.sha256(DATA).digest(), 2 << 20)
Handler = Callable[[Stream], Awaitable[None]]


@dataclass
class Subnet:
    """Started peers on one switch; uid n has peer key n. `asked`: who was asked how often."""

    switch: MemorySwitch = field(default_factory=MemorySwitch)
    started: list[MemoryTransport] = field(default_factory=list)
    asked: dict[int, int] = field(default_factory=dict)

    async def node(self, number: int) -> MemoryTransport:
        transport = MemoryTransport(self.switch, PeerIdentity(bytes([number]) * 32))
        await transport.start()
        self.started.append(transport)
        return transport

    async def holder(self, number: int, *files: bytes, known: tuple[Neuron, ...] = ()) -> FileService:
        transport = await self.node(number)
        book = PeerBook(transport, 1, key(number), PeerIdentity(bytes([number]) * 32).sign, verify_peer)
        book.update(roster(*known))
        return FileService(book, {hashlib.sha256(data).digest(): memoryview(data) for data in files})

    async def liar(self, number: int, handler: Handler) -> None:
        async def counted(stream: Stream) -> None:
            self.asked[number] = self.asked.get(number, 0) + 1
            await handler(stream)

        (await self.node(number)).serve(serving.METHOD, counted)

    async def sources(self, *numbers: int) -> list[Source]:
        asker = await self.node(99)
        return [PeerSource(asker, peer_key(number), f"uid {number}") for number in numbers]


@pytest.fixture
async def net() -> AsyncIterator[Subnet]:
    made = Subnet()
    yield made
    for transport in made.started:
        await transport.stop()


def peer_key(number: int) -> bytes:
    return PeerIdentity(bytes([number]) * 32).public_key


def granted(service: FileService, strangers: int) -> None:
    """So many bytes for strangers from now on, and not one more."""
    service._strangers = Bucket(strangers, 0.0)


def answering(size: int, *pieces: bytes) -> Handler:
    """Says that it has `size` bytes, then gives these, whatever was asked for."""

    async def handler(stream: Stream) -> None:
        await stream.read(100, 5)
        await stream.write(serving._NUMBER.pack(size), 5)
        for piece in pieces:
            await stream.write(piece, 5)

    return handler


async def test_a_file_comes_whole_from_a_peer_that_need_not_know_us(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, b"another", DATA)
    assert await fetch(WANTED, tmp_path / "x" / "pages.bin", await net.sources(1)) == "uid 1"
    assert (tmp_path / "x" / "pages.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["pages.bin"]


async def test_the_first_bytes_of_a_digest_are_enough_to_ask(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, DATA)
    await fetch(Wanted("x", WANTED.prefix[:8], 2 << 20), tmp_path / "x", await net.sources(1))
    with pytest.raises(NetworkFault, match="uid 1 does not have it"):
        await fetch(Wanted("y", bytes(8), 2 << 20), tmp_path / "y", await net.sources(1))


async def test_what_a_stalled_peer_gave_is_kept_and_another_goes_on(net: Subnet, tmp_path: Path) -> None:
    half = DATA[: len(DATA) // 2]
    await net.liar(1, answering(len(DATA), half[: serving.PIECE_BYTES], half[serving.PIECE_BYTES : 400_000]))
    await net.holder(2, DATA)
    said: list[str] = []
    assert await fetch(WANTED, tmp_path / "pages.bin", await net.sources(1, 2), say=said.append) == "uid 2"
    assert (tmp_path / "pages.bin").read_bytes() == DATA and said == []


async def test_half_a_page_set_on_disk_is_resumed(net: Subnet, tmp_path: Path) -> None:
    (tmp_path / "pages.bin.part").write_bytes(DATA[:1_000_000])
    granted(await net.holder(1, DATA), len(DATA) - 1_000_000)
    await fetch(WANTED, tmp_path / "pages.bin", await net.sources(1))
    assert (tmp_path / "pages.bin").read_bytes() == DATA


async def test_a_peer_that_gives_something_else_is_named_and_the_next_is_asked(net: Subnet, tmp_path: Path) -> None:
    await net.liar(3, answering(4_211, b"z" * 4_211))
    await net.holder(4, DATA)
    said: list[str] = []
    assert await fetch(WANTED, tmp_path / "pages.bin", await net.sources(3, 4), say=said.append) == "uid 4"
    digest = hashlib.sha256(b"z" * 4_211).hexdigest()[:16]
    hashes = f"hash to {digest}..., not {WANTED.prefix.hex()[:16]}..."
    assert said == [f"pages.bin: uid 3 gave 4,211 bytes that {hashes}"] and net.asked == {3: 1}


async def test_a_liar_that_stops_half_way_spoils_nobody_elses_bytes(net: Subnet, tmp_path: Path) -> None:
    """What several gave together is wrong, and who lied cannot be known: each fills a file of its own from then on."""
    await net.liar(1, answering(len(DATA), b"z" * 1000))
    granted(await net.holder(2, DATA), 3 * len(DATA))
    said: list[str] = []
    assert await fetch(WANTED, tmp_path / "pages.bin", await net.sources(1, 2), say=said.append) == "uid 2"
    assert (tmp_path / "pages.bin").read_bytes() == DATA
    assert len(said) == 1 and "uid 2 and others before it gave 1,280,000 bytes" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["pages.bin"]


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (answering(3 << 20), "has 3,145,728 bytes under that name, at most 2,097,152 are possible"),
        (answering(5, b""), "sends pieces without bytes"),
        (answering(0), "does not have it"),
        (answering(10, b"x" * 11), "a frame of 11 bytes was announced, at most 10 are allowed here"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_peer_that_breaks_the_rules_is_asked_once(
    net: Subnet, tmp_path: Path, handler: Handler, told: str
) -> None:
    await net.liar(1, handler)
    with pytest.raises(NetworkFault, match=r"^pages\.bin: uid 1 ") as caught:
        await fetch(WANTED, tmp_path / "pages.bin", await net.sources(1))
    assert told in str(caught.value) and "\n" not in str(caught.value) and net.asked == {1: 1}
    assert not (tmp_path / "pages.bin").exists()


async def test_nobody_to_ask_and_a_peer_that_is_away_are_said(net: Subnet, tmp_path: Path) -> None:
    with pytest.raises(NetworkFault, match="there is nobody to ask"):
        await fetch(WANTED, tmp_path / "pages.bin", [])
    with pytest.raises(NetworkFault, match="nothing came in 0 s: uid 7 no peer"):
        await fetch(WANTED, tmp_path / "pages.bin", await net.sources(7), patience_s=0.0)


async def test_strangers_share_a_small_budget_and_members_do_not(net: Subnet, tmp_path: Path) -> None:
    member = neuron(99, commitment=commitment(99, peer_key=peer_key(99)))
    for number, known in ((1, ()), (2, (member,))):
        granted(await net.holder(number, DATA, known=known), 300_000)
    asker = await net.node(99)
    for number, expected in ((1, serving.PIECE_BYTES), (2, len(DATA))):
        path, source = tmp_path / str(number), PeerSource(asker, peer_key(number), f"uid {number}")
        if number == 1:
            with pytest.raises(NetworkFault, match="nothing came"):
                await fetch(WANTED, path, [source], patience_s=0.0)
            path = path.with_name("1.part")
        else:
            await fetch(WANTED, path, [source])
        assert path.stat().st_size == expected


async def test_strangers_share_two_places_so_members_find_one_however_many_keys_come(
    net: Subnet, tmp_path: Path
) -> None:
    member = neuron(99, commitment=commitment(99, peer_key=peer_key(99)))
    await net.holder(1, DATA, known=(member,))
    for number in range(2, 8):  # each opens a stream and reads nothing more
        stream = await (await net.node(number)).open(peer_key(1), serving.METHOD, 5)
        await stream.write(serving._NUMBER.pack(0) + WANTED.prefix, 5)
        await asyncio.sleep(0.01)
    assert await fetch(WANTED, tmp_path / "x", await net.sources(1), patience_s=0.0) == "uid 1"


async def test_a_request_that_is_none_is_refused(net: Subnet) -> None:
    await net.holder(1, DATA)
    asker = await net.node(2)
    for request in (b"", bytes(8), bytes(15), bytes(40)[:39] + b"xx"):
        stream = await asker.open(peer_key(1), serving.METHOD, 5)
        await stream.write(request, 5)
        with pytest.raises(NetworkFault):
            await stream.read(100, 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_is_said_with_the_path(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, DATA)
    (tmp_path / "pages.bin.part").symlink_to("/dev/full")
    with pytest.raises(LocalFault, match=r"cannot write .*/pages\.bin: No space left on device; what has come"):
        await fetch(WANTED, tmp_path / "pages.bin", await net.sources(1))


# --- the story ---------------------------------------------------------------------------------------


def says(number: int, run: RunManifest, role: Role = Role.OWNER, **more: Any) -> Neuron:
    first = run.digest if role is Role.OWNER else key(number, "first")
    words = commitment(number, role, run=run.tag, first_round=0, first=first, peer_key=peer_key(number))
    return neuron(number, role, commitment=words, **more)


def config(folder: Path, **more: Any) -> NodeConfig:
    return NodeConfig(netuid=1, run_dir=folder / "{netuid}" / "{run}", wallet={"path": folder}, **more)  # type: ignore[call-arg]


async def found(net: Subnet, told: NodeConfig, scratch: Path, *people: Neuron) -> tuple[NodeConfig, RunManifest]:
    """As node 98, which is on no roster."""

    async def open_transport() -> Transport:
        return next((t for t in net.started if t.peer_key == peer_key(98)), None) or await net.node(98)

    scratch.mkdir(exist_ok=True)
    finder = Finder(told, roster(*people), "5hot0", key(98), open_transport, shown.append, scratch)
    return await finder.run()


shown: list[RunManifest] = []
PAGES = b"the page manifest"
A = run_of(0)
A = A.model_copy(update={"data": A.data.model_copy(update={"pages_sha256": hashlib.sha256(PAGES).hexdigest()})})


async def test_netuid_alone_gives_a_run_directory_that_needs_nobody_the_next_time(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, A.canonical(), PAGES)
    people = [says(0, A), says(1, A, Role.VALIDATOR, stake=10.0)]
    shown.clear()
    now, manifest = await found(net, config(tmp_path), tmp_path / "scratch", *people)
    folder = tmp_path / "1" / A.tag.hex()
    assert manifest == A and now.run_dir == folder and shown == [A]
    assert (folder / "manifest.json").read_bytes() == A.canonical()
    assert (folder / "pages" / "pages.bin").read_bytes() == PAGES
    for transport in net.started:
        await transport.stop()
    again, _ = await found(net, config(tmp_path), tmp_path / "scratch", *people)
    assert again.run_dir == folder


async def test_a_kept_manifest_that_was_damaged_is_asked_for_again(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, A.canonical(), PAGES)
    kept = tmp_path / "1" / A.tag.hex() / "manifest.json"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(A.canonical()[:1000])
    validator = says(1, A, Role.VALIDATOR, stake=10.0)
    assert (await found(net, config(tmp_path), tmp_path / "scratch", says(0, A), validator))[1] == A
    assert kept.read_bytes() == A.canonical()


async def test_a_digest_on_chain_that_fits_nothing_is_refused_with_what_came_from_whom(
    net: Subnet, tmp_path: Path
) -> None:
    """The owner names a digest that nobody has; the validators are in the run that it named before."""
    wrong = run_of(3)
    owner = says(0, wrong)
    await net.liar(0, answering(len(A.canonical()), A.canonical()))
    await net.holder(1, A.canonical(), PAGES)
    with pytest.raises(ConfigError) as caught:
        await found(net, config(tmp_path), tmp_path / "scratch", owner, says(1, A, Role.VALIDATOR, stake=10.0))
    assert str(caught.value) == (
        f"no run of netuid 1 can be followed: run {A.tag.hex()} (1 validators): its run key, uid 0, announces run "
        f"{wrong.sha256[:16]} instead; run {wrong.tag.hex()} (announced by uid 0): manifest.json: uid 0 gave "
        f"{len(A.canonical()):,} bytes that hash to {A.sha256[:16]}..., not {wrong.sha256[:16]}...; uid 1 "
        f"does not have it; {runs_command(config(tmp_path))} shows what there is, --run DIGEST chooses one"
    )
    assert not (tmp_path / "1").exists()


async def test_a_new_owner_of_the_subnet_hides_no_run_whatever_it_commits(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, A.canonical(), PAGES)
    garbage = neuron(8, Role.OWNER, hotkey="5hot0", commitment=commitment(8, Role.OWNER, run=bytes(8), first=bytes(32)))
    former = says(0, A, hotkey="another")
    _, manifest = await found(
        net, config(tmp_path), tmp_path / "scratch", garbage, former, says(1, A, Role.VALIDATOR, stake=10.0)
    )
    assert manifest == A


async def test_a_manifest_of_garbage_or_of_another_netuid_is_passed_over(net: Subnet, tmp_path: Path) -> None:
    other = RunManifest.model_validate(run_of(2).model_dump() | {"netuid": 7})
    loose = A.canonical().replace(b",", b", ", 1)  # parses, but is not the one spelling
    digest = hashlib.sha256(loose).digest()
    lax = neuron(
        0, Role.OWNER, commitment=commitment(0, Role.OWNER, run=digest[:8], first=digest, peer_key=peer_key(0))
    )
    await net.holder(0, loose)
    with pytest.raises(ConfigError, match="not in its one canonical form"):
        await found(net, config(tmp_path), tmp_path / "scratch", lax)
    await net.holder(2, other.canonical())
    with pytest.raises(ConfigError, match="its manifest is for netuid 7"):
        await found(net, config(tmp_path), tmp_path / "scratch", says(2, other, hotkey="5hot0"))


async def test_nothing_announced_strangers_and_a_run_by_hand_have_a_line_each(net: Subnet, tmp_path: Path) -> None:
    nobody, stranger = neuron(1, commitment=None), says(5, run_of(5))
    for people, run, told in (
        ((nobody,), None, "nothing is announced on netuid 1: the owner has not committed a run; "),
        ((stranger,), None, "no validator of netuid 1 is in a run and its owner announces none; "),
        (
            (stranger,),
            "abcd",
            "--run abcd: nothing on netuid 1 begins so; ",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            await found(net, config(tmp_path, run=run), tmp_path / "scratch", *people)
        assert str(caught.value).startswith(told)
        assert " -m distributed_training.runs --netuid 1 shows what there is" in str(caught.value)
    await net.holder(5, run_of(5).canonical())
    chosen = config(tmp_path, run=run_of(5).sha256[:8], pages=tmp_path)
    assert (await found(net, chosen, tmp_path / "scratch", stranger))[1] == run_of(5)


def test_the_command_that_lists_runs_asks_the_same_chain(tmp_path: Path) -> None:
    for more, network, endpoint in (
        ({"local_chain": tmp_path / "my chain"}, "finney", f"file:{tmp_path}/my chain"),
        ({"subtensor": {"network": "test"}}, "test", None),
        ({"subtensor": {"chain_endpoint": "ws://127.0.0.1:9944"}}, "finney", "ws://127.0.0.1:9944"),
    ):
        words = shlex.split(runs_command(config(tmp_path, **more)))[3:]
        options = runs.parser().parse_args(words)
        assert (options.netuid, options.network, options.endpoint) == (1, network, endpoint)


async def test_a_page_set_that_nobody_gives_says_where_to_put_it(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, A.canonical())
    with pytest.raises(ConfigError, match=r"lacks pages\.bin: uid 1 does not have it; put it in .*/pages/pages\.bin$"):
        await found(net, config(tmp_path), tmp_path / "scratch", says(1, A, Role.VALIDATOR, stake=10.0))


async def test_a_manifest_by_hand_wins_and_a_chain_that_says_otherwise_is_said(
    net: Subnet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "manifest.json").write_bytes(A.canonical())
    given = config(tmp_path).model_copy(update={"run_dir": tmp_path, "manifest": tmp_path / "manifest.json"})
    given = given.model_copy(update={"pages": tmp_path})
    assert (await found(net, given, tmp_path / "scratch", says(0, A)))[1] == A and not caplog.records
    assert (await found(net, given, tmp_path / "scratch", says(5, run_of(5))))[1] == A
    assert "announces or validates it yet" in caplog.text
    with pytest.raises(ConfigError, match="--run ffff: "):
        await found(net, given.model_copy(update={"run": "ffff"}), tmp_path / "scratch", says(0, A))


async def test_two_nodes_of_one_machine_fetch_once(net: Subnet, tmp_path: Path) -> None:
    await net.holder(1, A.canonical(), PAGES)
    people = says(0, A), says(1, A, Role.VALIDATOR, stake=10.0)
    both = (found(net, config(tmp_path), tmp_path / f"scratch{i}", *people) for i in range(2))
    first, second = await asyncio.gather(*both)
    assert first[1] == second[1] == A
