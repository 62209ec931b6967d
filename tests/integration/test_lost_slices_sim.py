"""A whole subnet in which a reducer gives its slice to nobody and the stake that is included in time claims it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_training.chain.memory import Ledger, MemoryChain
from distributed_training.errors import ChainRefused
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Role
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import World, make_world

LIAR, LATE = "validator-0", ("validator-1", "validator-2")


class Busy(Ledger):
    """Includes nothing of some hotkeys between two blocks."""

    def __init__(self, ledger: Ledger, late: tuple[str, ...], blocks: range) -> None:
        vars(self).update(vars(ledger))
        self.late, self.blocks, self.refused = late, blocks, set[str]()

    def write(self, module: str, function: str, hotkey: str, args: Mapping[str, Any]) -> int:
        if hotkey in self.late and self.head() in self.blocks:
            self.refused.add(hotkey)
            raise ChainRefused("the pool is full", "pool", passes=True)
        return super().write(module, function, hotkey, args)


class Liar:
    """A validator that computes nothing: it claims every slice of every round, and a root that nobody has."""

    def __init__(self, world: World) -> None:
        self._world, self._chain = world, MemoryChain(world.ledger, world.key(LIAR).hotkey)

    async def say(self, index: int | None, root: bytes | None) -> None:
        held = None if index is None else b"\xff" * 32
        key, run = self._world.identity(LIAR).public_key, self._world.manifest.tag
        said = Commitment(Role.VALIDATOR, False, key, run, index, root, index, held)
        await self._chain.commit(encode_commitment(said))

    async def live(self) -> None:
        m = self._world.manifest
        await self.say(None, None)
        for index in range(4):
            await self._world.ledger.reached(m.round(index).output_block + 4)
            await self.say(index, bytes([index] * 32) if index else bytes.fromhex(m.model.initial_root))


def withheld(world: World, index: int) -> str | None:
    """Who has put the hash of a slice of the round on chain: the first of them."""
    for neuron in world.ledger.roster(world.ledger.head()).neurons:
        said = neuron.commitment
        if said is not None and said.role is Role.MINER and said.second_round == index:
            return neuron.hotkey
    return None


def test_honest_nodes_go_on_without_the_slice_and_none_ends(tmp_path: Path) -> None:
    world = make_world(SimOptions(miners=4, rounds=3, validators=3, width=2), tmp_path)
    keys = {name: world.key(name).hotkey for name in world.options.genesis_names()}
    first, second = world.manifest.round(0), world.manifest.round(1)
    late = tuple(keys[name] for name in LATE)
    world.ledger = busy = Busy(world.ledger, late, range(first.output_block, first.map_block))
    nodes = {name: SimNode(world, name) for name in keys if name != LIAR}
    withholds: list[str] = []

    async def main() -> None:
        world.recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        for node in nodes.values():
            node.start()
        liar = asyncio.create_task(Liar(world).live())
        await asyncio.sleep(world.block_time(first.commit_block))
        while (hotkey := withheld(world, 0)) is None:  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.05)
        withholds.extend(name for name in keys if keys[name] == hotkey)
        world.links.partition([nodes[withholds[0]].peer_key])  # before anybody can ask for its slice
        await asyncio.sleep(world.block_time(second.map_block + 3) - world.recorder.now())
        world.links.heal()  # by now what it holds is lost for all others
        await asyncio.sleep(world.block_time(world.manifest.round(2).end_block) + 5 - world.recorder.now())
        for node in nodes.values():
            assert node.running, f"{node.name} ended"
            await node.kill()
        liar.cancel()

    run(main())
    print(
        {
            i: (n, w.at_s, w.root[:6], w.reason)
            for i, ws in world.recorder.settled.items()
            for n, w in ws.items()
            if n in withholds
        }
    )
    words = world.recorder.settled
    honest = set(nodes) - set(withholds)
    assert busy.refused == set(late), "both late validators' maps were refused, and said after s+Y"
    for index in range(3):
        assert honest <= set(words[index]) and len({words[index][name].root for name in honest}) == 1
    assert [words[index]["miner-0" if withholds != ["miner-0"] else "miner-1"].applied for index in range(3)] == [
        True, False, True,
    ]  # fmt: skip
    assert len({word.root for word in words[2].values()}) == 1 and set(words[2]) == set(nodes), "it joined the others"
