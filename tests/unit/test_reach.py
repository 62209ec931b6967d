"""Staying in reach without a port, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from samples import RUN, commitment, key, neuron, roster

from distributed_training.errors import NetworkFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Neuron, Role
from distributed_training.roles.reach import ReachService, greet, keep_in_touch
from distributed_training.simulation.loop import run

VALIDATOR, MINER = PeerIdentity(bytes([1]) * 32), PeerIdentity(bytes([2]) * 32)


class Scene:
    """A validator and a miner that know each other, the validator serving `reach`."""

    def __init__(self) -> None:
        self.switch = MemorySwitch()
        said = commitment(2, reduces=False, peer_key=MINER.public_key)
        validator = commitment(1, Role.VALIDATOR, reduces=False, peer_key=VALIDATOR.public_key)
        self.people: tuple[Neuron, ...] = (
            neuron(1, Role.VALIDATOR, commitment=validator, stake=5.0),
            neuron(2, address=None, commitment=said),
        )
        self.door = MemoryTransport(self.switch, VALIDATOR)
        self.miner = self._book(MemoryTransport(self.switch, MINER, listens=False), 2, MINER)
        self.validator = self._book(self.door, 1, VALIDATOR)
        ReachService(self.validator)

    def _book(self, transport: MemoryTransport, number: int, identity: PeerIdentity) -> PeerBook:
        book = PeerBook(transport, 1, key(number), identity.sign, verify_peer)
        book.update(roster(*self.people))
        return book

    async def start(self) -> None:
        await self.miner.transport.start()
        await self.door.start()


def playing(scene: Scene, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        await scene.start()
        await story(scene)
        await scene.miner.transport.stop()
        await scene.door.stop()

    run(main())


def test_a_malformed_greeting_or_answer_is_refused() -> None:
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
        await greet(scene.miner, VALIDATOR.public_key)
        with pytest.raises(WireError):
            await greet(scene.validator, MINER.public_key)

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
        holding = asyncio.create_task(keep_in_touch(scene.miner, RUN, MINER.public_key))
        await asyncio.sleep(2)
        assert await _call(scene)
        await scene.door.stop()
        await asyncio.sleep(20)
        await scene.miner.transport.disconnect(VALIDATOR.public_key)  # as when the validator's machine went away
        again = MemoryTransport(scene.switch, VALIDATOR)
        scene.validator = scene._book(again, 1, VALIDATOR)
        ReachService(scene.validator)
        await again.start()
        assert not await _call(scene)
        await asyncio.sleep(70)
        assert await _call(scene)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await again.stop()

    playing(Scene(), story)
