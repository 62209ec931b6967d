"""Finding out where others reach this node, and that its port is shut or its address another; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from samples import commitment, key, neuron, roster

from distributed_training.errors import ChainUnreachable, ConfigError, NetworkFault
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Role
from distributed_training.roles import outside
from distributed_training.roles.outside import KnockService, Seen, Witnesses, agreed
from distributed_training.simulation.loop import run

HOME, MOVED, PRIVATE, PORT = "8.8.8.8", "9.9.9.9", "192.168.1.5", 9000
ASKER = PeerIdentity(bytes([99]) * 32)


class Door(MemoryTransport):
    """A validator's transport: addresses behind it answer or do not, and it knows where it was made to dial."""

    def __init__(self, switch: MemorySwitch, identity: PeerIdentity) -> None:
        super().__init__(switch, identity)
        self.open_port = True
        self.knocked: list[tuple[str, int]] = []

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        self.knocked.append(address)
        return self.open_port


class Scene:
    """Some validators on the Internet, and a newcomer of whom the chain says nothing yet."""

    def __init__(self, validators: int = 3, *, known: bool = False, public: bool = True) -> None:
        self.switch = MemorySwitch()
        keys = [PeerIdentity(bytes([n + 1]) * 32) for n in range(validators)]
        self.people = [
            neuron(
                n + 1, Role.VALIDATOR, commitment=commitment(n + 1, Role.VALIDATOR, peer_key=k.public_key), stake=5.0
            )
            for n, k in enumerate(keys)
        ]
        if known:
            self.people.append(neuron(99, commitment=commitment(99, peer_key=ASKER.public_key)))
        self.doors = [Door(self.switch, k) for k in keys]
        self.me = MemoryTransport(self.switch, ASKER, source=HOME)
        self.witnesses = Witnesses(self.me, lambda: [door.peer_key for door in self.doors], public=True)
        for door, k in zip(self.doors, keys, strict=True):
            KnockService(self.book(door, k), public=public)

    def book(self, transport: MemoryTransport, identity: PeerIdentity) -> PeerBook:
        book = PeerBook(transport, 1, key(99), identity.sign, verify_peer)
        book.update(roster(*self.people))
        return book

    async def find(self, former: str | None = None) -> tuple[str, int]:
        return await self.witnesses.find(PORT, former)

    async def refused(self) -> str:
        with pytest.raises(ConfigError) as caught:
            await self.find()
        assert "\n" not in str(caught.value) and "--axon.external_ip" in str(caught.value)
        return str(caught.value)

    async def asks(self, question: bytes, transport: MemoryTransport | None = None) -> bytes | None:
        """The first validator. None: it refused."""
        stream = await (transport or self.me).open(self.doors[0].peer_key, "where", 5)
        try:
            await stream.write(question, 5)
            return await stream.read(5, 5)
        except NetworkFault:
            return None


def playing(scene: Scene, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        for transport in (*scene.doors, scene.me):
            await transport.start()
        await story(scene)
        for transport in (*scene.doors, scene.me):
            await transport.stop()

    run(main())


def test_a_newcomer_announces_where_validators_see_and_reach_it() -> None:
    async def story(scene: Scene) -> None:
        assert await scene.find() == (HOME, PORT)
        assert [door.knocked for door in scene.doors] == [[(HOME, PORT)]] * 3

    playing(Scene(), story)


def test_a_newcomer_that_nobody_could_dial_is_told_what_to_do() -> None:
    async def shut(scene: Scene) -> None:
        scene.doors[0].open_port = scene.doors[1].open_port = False
        told = await scene.refused()
        assert f"2 of 3 validators that see it at {HOME} cannot connect to its port {PORT} there" in told
        assert f"Open TCP port {PORT} in the firewall" in told and "--axon.outbound_only" in told

    async def private(scene: Scene) -> None:
        scene.me.source = PRIVATE
        assert f"see it at {PRIVATE} only: it is a private address of your own network" in await scene.refused()
        assert [door.knocked for door in scene.doors] == [[]] * 3, "nobody knocks inside its own network"

    async def nobody(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        assert "no validator is there that could say at which address it is seen" in await scene.refused()
        assert asyncio.get_running_loop().time() == began

    playing(Scene(), shut)
    playing(Scene(), private)
    playing(Scene(0), nobody)


def test_a_start_again_within_the_minute_waits_for_its_turn() -> None:
    async def story(scene: Scene) -> None:
        scene.doors[0].open_port = False
        await scene.refused()
        scene.doors[0].open_port = True  # forwarded now
        assert await scene.find() == (HOME, PORT)

    playing(Scene(1), story)


def test_who_was_found_before_goes_on_while_no_validator_is_there() -> None:
    async def story(scene: Scene) -> None:
        for door in scene.doors:
            await door.stop()
        assert await scene.find(former=MOVED) == (MOVED, PORT)

    playing(Scene(), story)


@pytest.mark.parametrize(
    ("seen", "public", "found"),
    [
        ([], True, "no validator is there"),
        ([(HOME, True)], True, (HOME, PORT)),
        ([(HOME, True), (HOME, True), (MOVED, True)], True, (HOME, PORT)),
        ([(HOME, True), (MOVED, True)], True, f"different addresses ({HOME}, {MOVED})"),
        ([(HOME, True), (HOME, False)], True, f"1 of 2 validators that see it at {HOME} cannot connect"),
        ([(HOME, True), (HOME, True), (HOME, False)], True, (HOME, PORT)),
        ([(HOME, True), (PRIVATE, False), (PRIVATE, False)], True, (HOME, PORT)),  # neighbours cannot tell
        ([("100.64.0.9", True)], True, "your provider's shared address"),
        ([(PRIVATE, True)], False, (PRIVATE, PORT)),
        ([("127.0.0.1", True)], False, "it is this machine's own loopback"),
    ],
)  # fmt: skip
def test_what_a_majority_sees_and_reaches_is_announced(
    seen: list[Seen], public: bool, found: tuple[str, int] | str
) -> None:
    said = agreed(seen, PORT, public=public)
    assert found in said if isinstance(found, str) else said == found


def test_a_validator_dials_only_who_asks_and_each_asker_once_a_minute() -> None:
    async def story(scene: Scene) -> None:
        door = scene.doors[0]
        assert await scene.asks(PORT.to_bytes(2, "big")) == bytes([1, 8, 8, 8, 8])
        assert await scene.asks((22).to_bytes(2, "big")) is None, "one port a minute is no scan"
        await asyncio.sleep(61)
        door.open_port = False
        assert await scene.asks(PORT.to_bytes(2, "big")) == bytes([2, 8, 8, 8, 8])
        assert door.knocked == [(HOME, PORT)] * 2

    playing(Scene(), story)
    playing(Scene(known=True), story)


def test_strangers_share_what_they_make_a_validator_dial_and_take_nothing_from_the_roster() -> None:
    async def story(scene: Scene) -> None:
        crowd = [MemoryTransport(scene.switch, PeerIdentity(bytes([100 + n]) * 32)) for n in range(40)]
        for n, stranger in enumerate(crowd):
            stranger.source = f"8.8.4.{n}"
            await stranger.start()
        answered = [await scene.asks(PORT.to_bytes(2, "big"), stranger) for stranger in crowd]
        assert sum(answer is not None for answer in answered) == outside.MAX_STRANGERS
        again = MemoryTransport(scene.switch, PeerIdentity(bytes([200]) * 32), source="8.8.4.0")
        await again.start()
        assert await scene.asks(PORT.to_bytes(2, "big"), again) is None, "a new peer key is no new turn"
        assert await scene.asks(PORT.to_bytes(2, "big")) is not None, "the roster's have turns of their own"

    playing(Scene(known=True), story)


def test_malformed_questions_and_answers_are_refused() -> None:
    async def questions(scene: Scene) -> None:
        for question in (b"", b"\x01", bytes(2), bytes(3)):
            assert await scene.asks(question) is None
        assert scene.doors[0].refusals == 4 and scene.doors[0].knocked == []

    async def answers(scene: Scene) -> None:
        said = iter([b"\x01\x08\x08\x08", b"\x00\x08\x08\x08\x08", bytes(6)])

        async def nonsense(stream: Stream) -> None:
            await stream.read(2, 5)
            await stream.write(next(said), 5)

        for door in scene.doors:
            door._serving._handlers["where"] = nonsense
        assert await scene.witnesses.look(PORT) == []

    playing(Scene(), questions)
    playing(Scene(), answers)


Move = Callable[[tuple[str, int]], Awaitable[None]]


async def during(scene: Scene, story: Callable[[], Awaitable[None]], told: list[str], move: Move | None) -> None:
    watching = asyncio.create_task(scene.witnesses.watch((HOME, PORT), told.append, move))
    await story()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_a_shut_port_is_told_until_it_opens() -> None:
    told: list[str] = []

    async def main(scene: Scene) -> None:
        async def story() -> None:
            await asyncio.sleep(3600)
            assert told == []
            for door in scene.doors:
                door.open_port = False
            await asyncio.sleep(1200)
            assert told and "--axon.outbound_only" in told[0] and "8.8.8.8:9000" in told[0]
            count = len(told)
            scene.doors[0].open_port = True
            await asyncio.sleep(200)
            assert len(told) <= count + 1
            count = len(told)
            await asyncio.sleep(3600)
            assert len(told) == count

        await during(scene, story, told, None)

    playing(Scene(known=True), main)


def test_validators_that_do_not_answer_say_nothing_about_the_port() -> None:
    told: list[str] = []

    async def main(scene: Scene) -> None:
        for door in scene.doors:
            await door.stop()
        await during(scene, lambda: asyncio.sleep(1000), told, None)
        assert told == []

    playing(Scene(known=True), main)


@pytest.mark.parametrize("found", [True, False])
def test_a_found_address_that_changes_is_announced_again_and_a_given_one_is_doubted(
    found: bool, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[tuple[str, int]] = []
    failures = [ChainUnreachable("away")]

    async def move(address: tuple[str, int]) -> None:
        if failures:
            raise failures.pop()
        said.append(address)

    async def main(scene: Scene) -> None:
        async def story() -> None:
            await asyncio.sleep(700)
            assert said == []
            scene.me.source = MOVED
            await asyncio.sleep(1200)

        told: list[str] = []
        await during(scene, story, told, move if found else None)
        assert said == ([(MOVED, PORT)] if found else []) and told == []
        doubts = [
            text
            for text in caplog.messages
            if f"sees this node at {HOME}, where it is announced: they see and reach it at {MOVED}" in text
        ]
        assert len(doubts) == (2 if found else 1), "once; again when the chain was away"

    playing(Scene(known=True), main)
