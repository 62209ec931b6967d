"""Nodes that are killed at one point of a round and started again: they go on, and commit no second thing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from subnet import Node, Subnet, check_same_states, connect, finished, make_subnet, running, seen, settled, start_node

from distributed_training.chain.base import Chain
from distributed_training.protocol.types import NO_BACKUP
from distributed_training.protocol.wire import decode_output, decode_signed

pytestmark = pytest.mark.alone

ROUNDS = 3
MINERS = 5


async def own_commitment(node: Node, round_index: int, output: bool) -> None:
    """Until the chain names the node's work (its output) of a round."""
    async with asyncio.timeout(30):
        while True:
            roster = await node.parts.chain.roster(node.parts.clock.head)
            me = roster.by_public_key(node.parts.signer.public_key)
            found = None if me is None else me.commitment
            if found is not None and round_index == (found.second_round if output else found.first_round):
                return
            await asyncio.sleep(node.parts.clock.block_s / 4)


async def restart(subnet: Subnet, name: str) -> Node:
    await subnet.nodes[name].stop()
    return await start_node(subnet, name, rounds=ROUNDS)


async def restart_in(subnet: Subnet, name: str, round_index: int, **event: Any) -> Node:
    await seen(subnet.nodes[name], timeout_s=60, round=round_index, **event)
    return await restart(subnet, name)


async def restart_after_commit(subnet: Subnet, name: str, round_index: int, *, output: bool) -> Node:
    await settled(subnet, round_index - 1, names=[name]) if round_index else None
    await own_commitment(subnet.nodes[name], round_index, output)
    return await restart(subnet, name)


async def committed(chain: Chain, subnet: Subnet) -> dict[tuple[str, int, str], set[bytes]]:
    """(node, round, field) -> every hash that ever stood on chain for it."""
    found: dict[tuple[str, int, str], set[bytes]] = {}
    last = subnet.manifest.round(ROUNDS - 1).map_block
    for block in range(subnet.manifest.timing.first_block, last + 1):
        roster = await chain.roster(block)
        for name in subnet.names:
            neuron = roster.by_hotkey(subnet.key(name).hotkey)
            c = None if neuron is None else neuron.commitment
            if c is not None and c.first_round is not None and c.first is not None:
                found.setdefault((name, c.first_round, "first"), set()).add(c.first)
            if c is not None and c.second_round is not None and c.second is not None:
                found.setdefault((name, c.second_round, "second"), set()).add(c.second)
    return found


def only_backup_added(subnet: Subnet, name: str, round_index: int, hashes: set[bytes]) -> bool:
    """The output records behind the hashes are one, but for the other slice that they name."""
    kept = [subnet.nodes[name].parts.store.output(round_index, h) for h in hashes]
    records = [decode_output(decode_signed(stored.record).body) for stored in kept if stored is not None]
    return len(records) == len(hashes) and len({replace(record, backup=NO_BACKUP) for record in records}) == 1


def included(subnet: Subnet, name: str) -> list[int]:
    rounds = subnet.nodes["miner-4"].rounds()
    return [index for index in sorted(rounds) if subnet.nodes[name].uid in rounds[index]["included"]]


async def test_killed_nodes_go_on_where_they_were_and_commit_nothing_twice(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=MINERS, owner=False, slower=2.0)  # nodes load while a round goes on
    async with running(subnet, rounds=ROUNDS):
        await asyncio.gather(
            restart_in(subnet, "miner-0", 0, event="phase", phase="train"),
            restart_after_commit(subnet, "miner-1", 0, output=False),
        )
        old = subnet.nodes["validator-1"]
        await asyncio.gather(
            restart_in(subnet, "miner-2", 1, event="phase", phase="average"),
            restart_after_commit(subnet, "miner-3", 1, output=True),
            restart_in(subnet, "validator-1", 1, event="phase", phase="average"),
        )
        await finished(subnet)
        chain = await connect(subnet, "miner-4")
        try:
            history = await committed(chain, subnet)
        finally:
            await chain.close()
        check_same_states(subnet, "miner-4", ROUNDS)
        assert 0 in included(subnet, "miner-1"), "its work was on chain, and its bytes were kept"
        assert 1 in included(subnet, "miner-3")
        for number, killed_in in enumerate((0, 0, 1, 1)):
            soon = {killed_in, killed_in + 1, killed_in + 2}
            assert soon & set(included(subnet, f"miner-{number}")) - ({0} if number == 0 else set())
        for (name, round_index, what), hashes in history.items():
            trained_twice = (name, round_index, what) == ("miner-0", 0, "first")
            assert len(hashes) == 1 or trained_twice or only_backup_added(subnet, name, round_index, hashes)
        assert ("validator-1", 1, "second") in history, "there was time left for its map"
        check_validator(old, subnet.nodes["validator-1"])


def check_validator(before: Node, after: Node) -> None:
    """Cards go on from the journal; logs that its former process had taken are nobody's fault."""
    first = before.all("scores", round=0)[0]["cards"] if before.all("scores", round=0) else {}
    last = after.all("scores")[-1]["cards"]
    assert all(last[uid]["S"] > 0 for uid in first)
    assert all(event["reason"] not in ("log missing", "no record") for event in after.all("audit", round=1))
    assert after.all("weights")
