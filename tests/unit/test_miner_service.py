"""To whom a miner gives its log and its chunks: the voters of the round, whatever permits others hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import RUN, SMALL, commitment, group, key, neuron, roster

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.rules.audit_plan import audit_beacon
from distributed_training.protocol.types import Role, Signed
from distributed_training.protocol.wire import encode_signed, encode_work
from distributed_training.roles.chunks import ask_chunks, drawn_chunks
from distributed_training.roles.service import MAX_PROBES, HeldWork, LogService, MinerService
from distributed_training.simulation import loop

G = group(3)
MINER, RICH_MINER, VOTER, LATE = 0, 1, 8, 9
JUDGES = tuple(
    neuron(n, Role.VALIDATOR, stake=1000.0, commitment=commitment(n, Role.VALIDATOR, run=SMALL.tag))
    for n in (VOTER, LATE)
)
PLAN = replace(G.plan, voters=JUDGES[:1])  # LATE has got its permit since s-B


class Scene:
    """A miner that holds its work. The chain is at block `first`, two seconds later at the next."""

    def __init__(self, first: int, folder: Path) -> None:
        self.first, self.switch = first, MemorySwitch()
        chain: Any = self
        self.clock = BlockClock(chain, 1.0)
        self.book = self.peers(MINER)
        self.store = RoundStore(folder)
        self.service = MinerService(SMALL, self.book, chain, self.clock, self.store)
        signed = encode_signed(Signed(encode_work(G.works[key(MINER)]), bytes(64)))
        self.work = HeldWork(G.works[key(MINER)], OwnWork(G.made[key(MINER)], signed), b"log")
        self.service.hold(self.work)

    async def head(self) -> Head:
        block = self.first + (asyncio.get_running_loop().time() >= 2)
        return Head(block, block)

    async def block_hash(self, number: int) -> bytes:
        return bytes(32)

    def peers(self, number: int) -> PeerBook:
        transport = MemoryTransport(self.switch, key(number, "peer"))
        self.switch.plug(transport)
        made = PeerBook(transport, 1, key(number), lambda message: bytes(64), lambda *asked: True)
        rich = replace(G.plan.roster.neurons[RICH_MINER], may_validate=True, stake=1e6)
        others = [n for n in G.plan.roster.neurons if n.uid != RICH_MINER]
        made.update(roster(*others, rich, *JUDGES))
        return made

    async def ask(self, number: int, chunks: int = 0, of: int = MINER) -> list[bytes]:
        """The digests, then so many chunks."""
        stream = await ask_chunks(self.peers(number), key(MINER, "peer"), PLAN.round.index, key(of), 5.0)
        return [await stream.read(4096, 5.0) for _ in range(1 + chunks)]


def drawn_by(scene: Scene) -> tuple[int, ...]:
    return drawn_chunks(audit_beacon(bytes(32), PLAN.round.index), key(VOTER), scene.work.record, SMALL, 1.0)


def shown(scene: Scene) -> bytes:
    """What leads from the chunks that the beacon draws for the voter to the miner's wire root."""
    return G.made[key(MINER)].show(drawn_by(scene))


def test_the_chunks_of_an_older_round_come_from_the_disk(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(PLAN.round.audit_block, tmp_path)
        ticking = asyncio.create_task(scene.clock.run())
        await scene.service.attend(PLAN)
        drawn = drawn_by(scene)
        for kept in (False, True):
            if kept:
                scene.store.put_own(PLAN.round.index, G.made[key(MINER)].chunks, b"log")
            scene.service.put_away()
            held = scene.service.held(PLAN.round.index)
            assert held is not None and bool(held.own.contribution.chunks) != kept, "what the disk lacks stays here"
            given = await scene.ask(VOTER, len(drawn))
            assert given[1:] == [G.made[key(MINER)].chunks[c] for c in drawn]
        (tmp_path / "rounds" / f"{PLAN.round.index:06d}" / "wire").unlink()
        with pytest.raises(NetworkFault):
            await scene.ask(VOTER, 1)
        ticking.cancel()

    loop.run(story())


def test_chunks_are_for_voters_of_the_round_and_who_asks_a_moment_early_is_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(PLAN.round.audit_block - 1, tmp_path)
        ticking = asyncio.create_task(scene.clock.run())
        attending = asyncio.create_task(scene.service.attend(PLAN))
        await asyncio.sleep(1)
        for number in (RICH_MINER, LATE):
            with pytest.raises(NetworkFault):
                await scene.ask(number)
        assert await scene.ask(VOTER) == [shown(scene)]
        await attending
        ticking.cancel()

    loop.run(story())


def test_the_log_goes_to_voters_only(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(PLAN.round.output_block - 1, tmp_path)
        ticking = asyncio.create_task(scene.clock.run())
        takers = {n: LogService(RUN, scene.peers(n), scene.clock, 2) for n in (RICH_MINER, VOTER, LATE)}
        for service in takers.values():
            await service.open_round(PLAN)
        await scene.clock.reached(1)
        await scene.service.push_logs(PLAN)
        assert {n: len(service.logs()) for n, service in takers.items()} == {RICH_MINER: 0, VOTER: 1, LATE: 0}
        ticking.cancel()

    loop.run(story())


def test_who_names_our_peer_key_as_its_own_uses_up_none_of_our_answers(tmp_path: Path) -> None:
    async def story() -> None:
        scene = Scene(PLAN.round.audit_block, tmp_path)
        ticking = asyncio.create_task(scene.clock.run())
        await scene.service.attend(PLAN)
        for _ in range(MAX_PROBES + 1):
            with pytest.raises(NetworkFault):
                await scene.ask(VOTER, of=RICH_MINER)
        assert await scene.ask(VOTER) == [shown(scene)]
        ticking.cancel()

    loop.run(story())


@pytest.mark.parametrize(("share", "needs"), [(1.0, True), (0.0, False)])
def test_who_leaves_waits_until_those_that_replay_it_have_where_its_training_began(
    tmp_path: Path, share: float, needs: bool
) -> None:
    scene, index = Scene(PLAN.round.audit_block, tmp_path), PLAN.round.index
    onward = replace(scene.work, record=replace(scene.work.record, began_at=b"w" * 32))
    scene.service.hold(onward)
    scene.service._voters[index], scene.service._beacons[index] = {key(VOTER): share}, bytes(32)
    scene.service.gave("chunks", index, key(VOTER))
    assert scene.service.answered(index) is not needs
    scene.service.gave("began", index, key(VOTER))
    assert scene.service.answered(index)
