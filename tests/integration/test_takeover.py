"""One hotkey in two processes: the first one says so and stops in that round, and nobody else loses a round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from distributed_training.chain.base import Chain
from distributed_training.chain.memory import MemoryChain
from distributed_training.chain.sole import SoleChain
from distributed_training.errors import HotkeyTaken, NotRegisteredError
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Role, Roster
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import World, make_world

ROUNDS = 4


async def until(world: World, block: float) -> None:
    await asyncio.sleep(max(0.0, block * world.ledger.params.block_s - asyncio.get_running_loop().time()))


async def ended(node: SimNode) -> BaseException | None:
    """What ended a node; None if it lives."""
    if node.task is None or not node.task.done():
        return None
    error = node.task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def with_a_twin(world: World, name: str, offset: int) -> tuple[SimNode, SimNode]:
    """Run all rounds; `offset` blocks after the start of round 1 the hotkey is started with a folder of its own."""
    world.recorder.now = asyncio.get_running_loop().time
    world.ledger.start_clock()
    nodes = {node: SimNode(world, node) for node in world.options.genesis_names()}
    for node in nodes.values():
        node.start()
    await until(world, world.manifest.round(1).start_block + offset)
    twin = nodes["twin"] = SimNode(world, f"{name}-twin")
    twin.key = world.key(name)
    twin.start()
    await until(world, world.manifest.round(2).roster_block)
    assert isinstance(await ended(nodes[name]), HotkeyTaken), "it stopped in the round in which it happened"
    await until(world, world.manifest.round(ROUNDS - 1).end_block + 10)
    assert await ended(twin) is None
    for node in nodes.values():
        await node.kill()
    return nodes[name], twin


@pytest.mark.parametrize(
    ("name", "offset"), [("miner-0", -1), ("miner-0", 14), ("validator-0", 1), ("validator-0", 14)]
)
def test_the_first_process_stops_in_that_round_and_nobody_loses_one(
    tmp_path: Path, name: str, offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(SimOptions(miners=4, rounds=ROUNDS, seed=3, validators=2), tmp_path)
    with caplog.at_level(logging.INFO, logger="distributed_training"):
        run(with_a_twin(world, name, offset))
    for index in range(ROUNDS):
        settled = world.recorder.settled[index]
        assert len({event.root for event in settled.values()}) == 1
        assert all(event.applied and event.included == 4 for event in settled.values()), index
    assert {f"{name}-twin", "miner-1", "validator-1"} <= set(world.recorder.settled[ROUNDS - 1])
    lines = [record.getMessage() for record in caplog.records]
    assert sum("was used with another peer key" in line for line in lines) == 1


# --- the rule ------------------------------------------------------------------------------------------------------

MINE, THEIRS, GRACE = b"m" * 32, b"t" * 32, 20


class Shown(MemoryChain):
    """Answers with `shown`, where there is one, whatever block is asked for."""

    shown: Roster | None = None

    async def roster(self, block: int) -> Roster:
        return self.shown or await super().roster(block)


class Scene:
    """A hotkey with two ways to the chain: ours, watched, and one of another process."""

    def __init__(self, world: World) -> None:
        self.world, self.key = world, world.key("miner-0")
        self.plain = MemoryChain(world.ledger, self.key.hotkey)
        world.ledger.start_clock()

    async def begin(self) -> SoleChain:
        return await SoleChain.begin(MemoryChain(self.world.ledger, self.key.hotkey), self.key, MINE, GRACE)

    async def write(self, chain: Chain, peer_key: bytes, round_index: int = 0) -> int:
        work = bytes([round_index]) * 32
        said = Commitment(Role.MINER, True, peer_key, bytes(8), round_index, work, None, None)
        return await chain.commit(encode_commitment(said))

    async def look(self, chain: Chain) -> None:
        await chain.roster(self.world.ledger.head())

    async def pass_blocks(self, count: int) -> None:
        await self.world.ledger.reached(self.world.ledger.head() + count)


async def ours_are_no_surprise(s: Scene) -> None:
    sole = await s.begin()
    await sole.serve("127.0.0.2", 9000)
    for round_index in range(3):
        await s.write(sole, MINE, round_index)
        await s.look(sole)
    assert await sole.head() == await s.plain.head()


async def another_peer_key(s: Scene) -> None:
    sole = await s.begin()
    await s.write(sole, MINE)
    await s.plain.serve("127.0.0.3", 9001)
    block = await s.write(s.plain, THEIRS)
    await sole.roster(block - 2)  # history
    with pytest.raises(HotkeyTaken) as caught:
        await s.look(sole)
    message = str(caught.value)
    for part in (s.key.hotkey, f"since block {block}", THEIRS.hex()[:12], "127.0.0.3:9001", "this process stops"):
        assert part in message
    assert "\n" not in message


async def who_writes_last_goes_on(s: Scene) -> None:
    first, second = await s.begin(), await SoleChain.begin(s.plain, s.key, THEIRS, GRACE)
    await s.write(first, MINE)
    await s.look(second)  # it has not said anything yet: the hotkey is the first one's
    await s.write(second, THEIRS)
    await s.look(second)
    late = await s.write(first, MINE, 1)  # it had looked before that write
    await s.look(first)
    assert (await first.roster(late - 1)) is not None, "what was before our last write does not matter"
    with pytest.raises(HotkeyTaken):
        await s.look(second)


async def a_copied_folder(s: Scene) -> None:
    """The same peer key: what our own former process wrote just before it ended is no surprise, later it is."""
    await s.write(s.plain, MINE)
    sole = await s.begin()
    await s.write(s.plain, MINE, 1)
    await s.look(sole)
    await s.pass_blocks(GRACE + 1)
    await s.look(sole)
    await s.write(s.plain, MINE, 2)
    with pytest.raises(HotkeyTaken, match="own peer key, as from a copy"):
        await s.look(sole)


async def another_address(s: Scene) -> None:
    sole = await s.begin()
    await sole.serve("127.0.0.2", 9000)
    await s.write(sole, MINE)
    await s.pass_blocks(GRACE + 1)
    await s.plain.serve("127.0.0.2", 9001)
    with pytest.raises(HotkeyTaken, match=r"address 127\.0\.0\.2:9001"):
        await s.look(sole)


async def a_reorganisation(s: Scene) -> None:
    """Our write is taken back for some blocks, and what the other one had written before it shows again."""
    chain = Shown(s.world.ledger, s.key.hotkey)
    sole = await SoleChain.begin(chain, s.key, MINE, GRACE)
    before = s.world.ledger.roster(await s.write(s.plain, THEIRS))  # while we wait for the end of the round
    block = await s.write(sole, MINE)
    chain.shown = replace(before, block=replace(before.block, number=block + 1))
    await s.look(sole)
    chain.shown = None
    await s.write(s.plain, THEIRS)
    with pytest.raises(HotkeyTaken):
        await s.look(sole)


async def an_address_that_is_gone(s: Scene) -> None:
    """Reset by the operator, with another tool: no process announces that it is nowhere."""
    await s.plain.serve("127.0.0.2", 9000)
    chain = Shown(s.world.ledger, s.key.hotkey)
    sole = await SoleChain.begin(chain, s.key, MINE, GRACE)
    block = await s.write(sole, MINE)
    await s.pass_blocks(GRACE + 1)
    roster = s.world.ledger.roster(block)
    for commitment in (None, *(n.commitment for n in roster.neurons if n.hotkey == s.key.hotkey)):
        neurons = (replace(n, address=None, commitment=commitment) for n in roster.neurons)
        chain.shown = replace(roster, neurons=tuple(neurons), block=replace(roster.block, number=block + GRACE + 1))
        await s.look(sole)


async def a_uid_that_is_lost(s: Scene) -> None:
    roster = s.world.ledger.roster(0)
    me = roster.by_public_key(s.key.public_key)
    assert me is not None
    for former, said in (
        (replace(me, public_key=bytes(32)), "is no longer registered: by block 0 uid 2 was given to another one"),
        (replace(me, uid=9), r"registered again in block \d+ as uid 2 \(before: 9\)"),
    ):
        with pytest.raises(NotRegisteredError, match=said):
            await s.look(SoleChain(s.plain, roster, former, MINE, GRACE))


@pytest.mark.parametrize(
    "story",
    [
        ours_are_no_surprise,
        another_peer_key,
        who_writes_last_goes_on,
        a_copied_folder,
        another_address,
        a_reorganisation,
        an_address_that_is_gone,
        a_uid_that_is_lost,
    ],
)
def test_whose_the_hotkey_is(
    tmp_path_factory: pytest.TempPathFactory, story: Callable[[Scene], Awaitable[None]]
) -> None:
    async def main() -> None:
        await story(Scene(make_world(SimOptions(miners=1, rounds=1, validators=1), tmp_path_factory.mktemp("w"))))

    run(main())
