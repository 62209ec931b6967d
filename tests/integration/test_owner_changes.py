"""A subnet gets another owner while a run is under way: the run goes on, and so does whoever joins it."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

from distributed_training.chain.keys import derive_coldkey
from distributed_training.chain.local.epoch import RAO
from distributed_training.chain.memory import MemoryChain
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Field, Role
from distributed_training.simulation.loop import run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import STAKE, WALLET, World, make_world


def arrive(world: World) -> None:
    """The usurper has more stake than the validator, so a permit from the first epoch on."""
    world.register("usurper")
    coldkey, hotkey = derive_coldkey(world.options.seed, WALLET).ss58_address, world.key("usurper").hotkey
    world.ledger.fund(coldkey, 5 * STAKE)
    args = {"hotkey": hotkey, "netuid": world.manifest.netuid, "amount_staked": round(4 * STAKE * RAO)}
    world.ledger.write("SubtensorModule", "add_stake", coldkey, args)


async def usurp(world: World) -> None:
    """It owns the subnet from now on. It commits garbage, a run of its own, and other words about this one."""
    usurper = MemoryChain(world.ledger, world.key("usurper").hotkey)
    world.ledger.params = replace(world.ledger.params, owner_hotkey=world.key("usurper").hotkey)
    await usurper.commit((Field("Raw", b"garbage"),))
    for tag in (bytes(8), world.manifest.tag):
        said = Commitment(Role.OWNER, False, bytes(32), tag, 0, bytes(32), 1, bytes(32))
        await usurper.commit(encode_commitment(said))


def test_the_run_goes_on_and_joiners_join_it(tmp_path: Path) -> None:
    told = io.StringIO()
    world = make_world(SimOptions(miners=2, rounds=3, validators=1, width=2), tmp_path, told)
    keep = world.manifest.keep.model_copy(update={"snapshot_every": 1})
    world.manifest = world.manifest.model_copy(update={"keep": keep})

    async def main() -> None:
        world.recorder.now = asyncio.get_running_loop().time
        world.ledger.start_clock()
        arrive(world)
        nodes = [SimNode(world, name) for name in world.options.genesis_names()]
        for node in nodes:
            node.start()
        await asyncio.sleep(world.block_time(world.manifest.round(0).end_block))
        await usurp(world)
        world.register("miner-2")
        decided = world.manifest.round(1).map_block + world.manifest.timing.finality  # before the next s-B
        await asyncio.sleep(world.block_time(decided) - world.recorder.now())
        nodes.append(SimNode(world, "miner-2"))
        nodes[-1].start()
        await asyncio.sleep(world.block_time(world.manifest.round(2).end_block) - world.recorder.now())
        for node in nodes:
            await node.kill()

    run(main())
    neurons = world.ledger.roster(world.manifest.round(1).roster_block).neurons
    permits = {n.hotkey: n.stake for n in neurons if n.may_validate}
    assert permits[world.key("usurper").hotkey] > sum(permits.values()) / 2
    events = [json.loads(line) for line in told.getvalue().splitlines()]
    (ready,) = [event for _, node, event in events if node == "miner-2" and event["event"] == "ready"]
    assert (ready["source"], ready["start_round"]) == ("peers", 1), "the validator's word is the majority's"
    last = world.recorder.settled[2]
    assert set(last) == {*world.options.genesis_names(), "miner-2"} and len({word.root for word in last.values()}) == 1
    assert [word.included for word in last.values()] == [3] * 5
