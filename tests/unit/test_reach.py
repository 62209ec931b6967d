"""Staying in reach without a port, and finding out that a port is shut; an hour of it in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from samples import commitment, key, neuron, roster

from distributed_training.errors import NetworkFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Neuron, Role
from distributed_training.roles.reach import Answer, Question, ReachService, ask, keep_in_touch, watch_port
from distributed_training.simulation.loop import run

VALIDATOR, MINER = PeerIdentity(bytes([1]) * 32), PeerIdentity(bytes([2]) * 32)
PUBLIC, PRIVATE = ("8.8.8.8", 9000), ("192.168.1.5", 9000)


class Door(MemoryTransport):
    """A transport behind which addresses answer or do not, and which remembers whom it was told not to dial."""

    open_port = True
    knocks = 0

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        self.knocks += 1
        return self.open_port


class Scene:
    """A validator and a miner that know each other, the validator serving `reach`."""

    def __init__(
        self,
        address: tuple[str, int] | None = PUBLIC,
        *,
        reduces: bool = True,
        own: tuple[str, int] | None = PUBLIC,
        listens: bool = True,
    ) -> None:
        self.switch = MemorySwitch()
        said = commitment(2, reduces=reduces, peer_key=MINER.public_key)
        validator = commitment(1, Role.VALIDATOR, reduces=False, peer_key=VALIDATOR.public_key)
        self.people: tuple[Neuron, ...] = (
            neuron(1, Role.VALIDATOR, commitment=validator, stake=5.0),
            neuron(2, address=address, commitment=said),
        )
        self.door = Door(self.switch, VALIDATOR)
        self.miner = self._book(MemoryTransport(self.switch, MINER, listens=listens), 2, MINER)
        self.validator = self._book(self.door, 1, VALIDATOR)
        ReachService(self.validator, own)

    def _book(self, transport: MemoryTransport, number: int, identity: PeerIdentity) -> PeerBook:
        book = PeerBook(transport, 1, key(number), identity.sign, verify_peer)
        book.update(roster(*self.people))
        return book

    async def start(self) -> None:
        await self.miner.transport.start()
        await self.door.start()

    async def asks(self, question: Question) -> Answer:
        return await ask(self.miner, VALIDATOR.public_key, question)


def playing(scene: Scene, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        await scene.start()
        await story(scene)
        await scene.miner.transport.stop()
        await scene.door.stop()

    run(main())


@pytest.mark.parametrize("is_open", [True, False])
def test_a_validator_knocks_at_the_address_of_the_chain_once_a_minute(is_open: bool) -> None:
    async def story(scene: Scene) -> None:
        scene.door.open_port = is_open
        assert await scene.asks(Question.HELLO) is Answer.HERE
        assert await scene.asks(Question.KNOCK) is (Answer.OPEN if is_open else Answer.SHUT)
        with pytest.raises(NetworkFault):
            await scene.asks(Question.KNOCK)
        assert await scene.asks(Question.HELLO) is Answer.HERE
        await asyncio.sleep(61)
        assert await scene.asks(Question.KNOCK) is (Answer.OPEN if is_open else Answer.SHUT)
        assert scene.door.knocks == 2

    playing(Scene(), story)


@pytest.mark.parametrize("address", [None, PUBLIC])
def test_nobody_knocks_for_who_has_no_port(address: tuple[str, int] | None) -> None:
    async def story(scene: Scene) -> None:
        with pytest.raises(NetworkFault):
            await scene.asks(Question.KNOCK)
        assert scene.door.knocks == 0

    playing(Scene(address, reduces=False), story)
    playing(Scene(None), story)


def test_a_validator_on_the_internet_does_not_knock_inside_its_own_network() -> None:
    async def shut(scene: Scene) -> None:
        assert await scene.asks(Question.KNOCK) is Answer.SHUT
        assert scene.door.knocks == 0

    async def knocked(scene: Scene) -> None:
        assert await scene.asks(Question.KNOCK) is Answer.OPEN

    playing(Scene(PRIVATE), shut)
    playing(Scene(PRIVATE, own=PRIVATE), knocked)


def test_a_malformed_question_or_answer_is_refused() -> None:
    async def question(scene: Scene) -> None:
        stream = await scene.miner.open(VALIDATOR.public_key, "reach", b"\x07", 5)
        with pytest.raises(NetworkFault):
            await stream.read(1, 5)
        assert scene.door.refusals == 1

    async def answer(scene: Scene) -> None:
        async def nonsense(stream: Stream) -> None:
            await stream.read(4096, 5)
            await stream.write(b"\x09", 5)

        scene.miner.transport.serve("reach", nonsense)
        with pytest.raises(WireError):
            await ask(scene.validator, MINER.public_key, Question.HELLO)

    playing(Scene(), question)
    playing(Scene(), answer)


async def _call(scene: Scene) -> bool:
    """Does a stream that the validator opens reach the miner?"""
    try:
        stream = await scene.validator.open(MINER.public_key, "chunks", b"", 5)
        return await stream.read(10, 5) == b"yes"
    except NetworkFault:
        return False


def test_a_miner_without_a_port_stays_within_reach_of_the_validators() -> None:
    async def story(scene: Scene) -> None:
        async def chunks(stream: Stream) -> None:
            await stream.write(b"yes", 5)

        scene.miner.transport.serve("chunks", chunks)
        assert not await _call(scene)
        holding = asyncio.create_task(keep_in_touch(scene.miner, MINER.public_key))
        await asyncio.sleep(2)
        assert await _call(scene)
        await scene.door.stop()
        await asyncio.sleep(20)
        await scene.miner.transport.disconnect(VALIDATOR.public_key)  # as when the validator's machine went away
        again = Door(scene.switch, VALIDATOR)
        scene.validator = scene._book(again, 1, VALIDATOR)
        ReachService(scene.validator, PUBLIC)
        await again.start()
        assert not await _call(scene)
        await asyncio.sleep(70)
        assert await _call(scene)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await again.stop()

    playing(Scene(None, reduces=False, listens=False), story)


def test_a_shut_port_is_told_until_it_opens() -> None:
    told: list[str] = []

    async def story(scene: Scene) -> None:
        watching = asyncio.create_task(watch_port(scene.miner, MINER.public_key, PUBLIC, told.append))
        await asyncio.sleep(3600)
        assert told == []
        assert scene.door.knocks < 10
        scene.door.open_port = False
        await asyncio.sleep(700)
        assert told
        assert all(word in told[0] for word in ("8.8.8.8:9000", "TCP port 9000", "--axon.outbound_only"))
        scene.door.open_port = True
        await asyncio.sleep(70)
        count = len(told)
        await asyncio.sleep(3600)
        assert len(told) == count
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    playing(Scene(), story)


def test_validators_that_do_not_answer_say_nothing_about_the_port() -> None:
    told: list[str] = []

    async def story(scene: Scene) -> None:
        await scene.door.stop()
        watching = asyncio.create_task(watch_port(scene.miner, MINER.public_key, PUBLIC, told.append))
        await asyncio.sleep(1000)
        assert told == []
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    playing(Scene(), story)
