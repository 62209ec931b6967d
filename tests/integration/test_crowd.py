"""Registered nodes that do no work and ask for all they can get: honest ones train, join and are paid as without them.

Whole subnets on a virtual clock, over links with a modelled bandwidth; compared with the same subnet left alone.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from distributed_training.chain.memory import MemoryChain
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.base import closing
from distributed_training.network.identity import verify_peer
from distributed_training.network.memory import MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Role
from distributed_training.simulation.faults import Incident
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.swarm import Swarm
from distributed_training.simulation.world import INCLUSION_S, World, make_world
from distributed_training.snapshots.header import HELD, METHOD, RANGE, ROUND
from distributed_training.snapshots.serving import IDLE_TIMEOUT_S

HONEST, HOSTILE, JOINS_IN = 3, 4, 2
NEWCOMER = f"miner-{HONEST + HOSTILE}"
WAIT_S = 20.0
Attack = Callable[[PeerBook, bytes, int], Awaitable[None]]  # on one peer key; the newest snapshot there may be


class Hostile(SimNode):
    """On the roster like everybody; then `attack` on each of the others, again and again."""

    def __init__(self, world: World, name: str, attack: Attack) -> None:
        super().__init__(world, name)
        self._attack = attack

    @property
    def running(self) -> bool:
        """It settles no round, and nobody expects it to."""
        return False

    async def _live(self) -> None:
        w = self.world
        async with AsyncExitStack() as stack:
            chain = MemoryChain(w.ledger, self.key.hotkey, line=self._line, inclusion_s=INCLUSION_S)
            transport = self._transport = MemoryTransport(w.switch, self.peer_key)
            stack.push_async_callback(transport.stop)
            await transport.start()
            book = PeerBook(transport, w.manifest.netuid, self.key.public_key, self.identity.sign, verify_peer)
            said = Commitment(Role.MINER, False, self.peer_key, w.manifest.tag, None, None, None, None)
            await chain.commit(encode_commitment(said))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            attacked = {self.peer_key}
            while True:
                book.update(await chain.roster((await chain.head()).number))
                keys = {n.commitment.peer_key for n in book.neurons if n.commitment and n.reachable_at}
                for key in sorted(keys - attacked):
                    tasks.create_task(self._again_and_again(book, key))
                attacked |= keys
                await asyncio.sleep(5.0)

    async def _again_and_again(self, book: PeerBook, key: bytes) -> None:
        w, every = self.world, self.world.manifest.keep.snapshot_every
        while True:
            index = int(asyncio.get_running_loop().time() // w.block_time(w.manifest.timing.length))
            with suppress(NetworkFault, PeerFault):
                await self._attack(book, key, max(0, index - 1) // every * every)
            await asyncio.sleep(1.0)


async def snapshot(book: PeerBook, key: bytes, index: int, pause_s: float, window: int) -> None:
    """A stream that asks for the whole state, or as much of it as may be, every so often, `window` answers ahead."""
    async with closing(book.open(key, METHOD, ROUND.pack(index), WAIT_S)) as stream:
        header = await stream.read(1 << 20, WAIT_S)
        if header[:1] != HELD:
            return
        chunks = (len(header) - len(HELD)) // 32 - 2
        request = RANGE.pack(0, 2 if pause_s else chunks)
        for _ in range(window):
            await stream.write(request, WAIT_S)
        while True:
            await stream.read(1 << 20, WAIT_S)
            await stream.write(request, WAIT_S)
            await asyncio.sleep(pause_s)


async def hold_places(book: PeerBook, key: bytes, index: int) -> None:
    """Two streams of one small request each now and then, kept open for as long as they may be."""
    await asyncio.gather(*(snapshot(book, key, index, 2.0, 1) for _ in range(2)), return_exceptions=True)


async def take_the_line(book: PeerBook, key: bytes, index: int) -> None:
    """The same chunks again and again, as fast as they come."""
    await asyncio.gather(*(snapshot(book, key, index, 0.0, 32) for _ in range(2)), return_exceptions=True)
    await asyncio.sleep(9.0)


class HalfOpen:
    """A stream under every method that there is, with first frames of every length that one has; then silence. How long
    the peer bears each, in virtual seconds, by method."""

    def __init__(self) -> None:
        self.held: dict[str, list[float]] = {}

    async def __call__(self, book: PeerBook, key: bytes, index: int) -> None:
        transport = book.transport
        assert isinstance(transport, MemoryTransport)
        methods = tuple(transport._switch.find(key)._serving._handlers)
        await asyncio.gather(*(self._one(book, key, m, size) for m in methods for size in (0, 2, 4, 6, 36)))
        await asyncio.sleep(3600)

    async def _one(self, book: PeerBook, key: bytes, method: str, size: int) -> None:
        began = asyncio.get_running_loop().time()
        with suppress(NetworkFault, PeerFault):
            async with closing(book.open(key, method, bytes(size), WAIT_S)) as stream:
                while True:
                    await stream.read(1 << 20, 3600.0)
        self.held.setdefault(method, []).append(asyncio.get_running_loop().time() - began)


async def idle(book: PeerBook, key: bytes, index: int) -> None:
    await asyncio.sleep(3600)


class Seen:
    """What became of a subnet of three honest miners, two validators, the owner and four that `attack`; in round 2
    another honest miner comes."""

    def __init__(self, root: Path, attack: Attack, rounds: int) -> None:
        written = io.StringIO()
        world = make_world(SimOptions(miners=HONEST + HOSTILE, rounds=rounds, validators=2, seed=5), root, written)
        keep = world.manifest.keep.model_copy(update={"snapshot_every": 1})
        world.manifest = world.manifest.model_copy(update={"keep": keep})
        at_s = world.block_time(world.manifest.round(JOINS_IN).start_block)
        swarm = Swarm(world, (Incident("add", at_s, at_s, (NEWCOMER,)),) if rounds > JOINS_IN else ())
        for number in range(HONEST, HONEST + HOSTILE):
            swarm.nodes[f"miner-{number}"] = Hostile(world, f"miner-{number}", attack)
        run(swarm.run(lambda row: None))
        self.violations = swarm.violations
        self.rounds = [(row.applied, row.included, row.averaged_tokens) for row in swarm.rows]
        self.events = [json.loads(line) for line in written.getvalue().splitlines()]

    def of(self, node: str, event: str) -> list[tuple[float, dict[str, Any]]]:
        """(virtual seconds, event)."""
        return [(at, told) for at, name, told in self.events if name == node and told["event"] == event]

    def weights(self) -> list[dict[str, float]]:
        """By uid, of every audited round."""
        told = (told for _, told in self.of("validator-0", "scores"))
        return [{uid: card["weight"] for uid, card in scores["cards"].items()} for scores in told]


def test_nobody_keeps_a_newcomer_from_the_state_by_holding_all_places(tmp_path: Path) -> None:
    alone, held = Seen(tmp_path / "alone", idle, 3), Seen(tmp_path / "held", hold_places, 3)
    assert held.violations == alone.violations == []
    assert held.rounds == alone.rounds and held.weights() == alone.weights()
    ((at_alone, before),), ((at_held, told),) = alone.of(NEWCOMER, "ready"), held.of(NEWCOMER, "ready")
    assert before["source"] == told["source"] == "peers" and at_held < at_alone + 1.0


def test_a_half_open_stream_ends_under_every_method(tmp_path: Path) -> None:
    half_open = HalfOpen()
    seen = Seen(tmp_path, half_open, 1)
    assert seen.violations == [] and seen.rounds[0][:2] == (True, HONEST)
    assert half_open.held.keys() >= {"scatter", "slice", "log", "chunks", "snapshot", "reach", "where"}
    assert max(max(seconds) for seconds in half_open.held.values()) <= IDLE_TIMEOUT_S + 1.0
    assert {method for method, seconds in half_open.held.items() if max(seconds) > 11.0} == {"snapshot"}


def test_nobody_takes_the_line_that_a_round_needs(tmp_path: Path) -> None:
    taken = Seen(tmp_path, take_the_line, 1)
    assert taken.violations == [] and taken.rounds == [(True, HONEST, taken.rounds[0][2])]
    assert all(set(told["credit"].values()) == {1.0} for _, told in taken.of("validator-0", "round"))
