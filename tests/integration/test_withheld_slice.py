"""A reducer puts its hash on chain and gives its slice to nobody: every validator's map stands long before s+Y."""

from __future__ import annotations

import asyncio
from pathlib import Path

from distributed_training.protocol.rules.membership import decode_slice_map
from distributed_training.protocol.types import Role
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import World, make_world


def outputs(world: World) -> int:
    """How many reducers have put a hash on chain, as of the block that is being made."""
    said = [n.commitment for n in world.ledger.roster(world.ledger.head()).neurons]
    return sum(c is not None and c.role is Role.MINER and c.second is not None for c in said)


def test_a_withheld_slice_does_not_bring_the_maps_near_the_deadline(tmp_path: Path) -> None:
    world = make_world(SimOptions(miners=3, rounds=1, validators=2, width=2), tmp_path)
    timing = world.manifest.timing.model_copy(update={"map": 60, "length": 70})
    world.manifest = world.manifest.model_copy(update={"timing": timing})
    round_, maps = world.manifest.round(0), list[tuple[bool, ...]]()

    async def main() -> None:
        world.recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        nodes = [SimNode(world, name) for name in world.options.genesis_names()]
        for node in nodes:
            node.start()
        await asyncio.sleep(world.block_time(round_.commit_block))
        while outputs(world) < 3:  # noqa: ASYNC110 (virtual time)
            await asyncio.sleep(0.1)
        world.links.partition([nodes[-1].peer_key])  # before its hash is final, so before anybody asks for its slice
        await asyncio.sleep(world.block_time(round_.map_block - 8) - world.recorder.now())
        for neuron in world.ledger.roster(world.ledger.head()).neurons:
            said = neuron.commitment
            if said is not None and said.role is Role.VALIDATOR and said.second is not None:
                maps.append(decode_slice_map(said.second, 3))
        await asyncio.sleep(world.block_time(round_.end_block) - world.recorder.now())
        for node in nodes:
            await node.kill()

    run(main())
    assert [sum(bits) for bits in maps] == [2, 2], "both validators have said what they hold"
    assert all(word.applied for word in world.recorder.settled[0].values())
