"""Bad weather over the SDK's own transport: a proxy before a chain node that answers in a real runtime's bytes."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from chain_rig import NETUID, VERSION_KEY, connect, keep_caches_in, key, make_chain, reach
from devnode import SPECS, DevNode, Proxy

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.local.genesis import start_clock
from distributed_training.chain.subnet import TESTED_SPECS
from distributed_training.errors import ChainFault, ChainUnreachable
from distributed_training.metrics.told import Words
from distributed_training.protocol.types import Commitment, Field, Role
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import commit_by

pytestmark = pytest.mark.alone

BLOCK_S = 0.1
MINER = Commitment(Role.MINER, True, b"p" * 32, b"run-tag-", 3, b"w" * 32, None, None)
CUTS = ("cut-before", "cut-after", "cut-watch")


@dataclass
class Scene:
    """A miner's client behind the proxy of a node; `events` is what it told its metrics."""

    node: DevNode
    proxy: Proxy
    chain: BittensorChain
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        metrics = SimpleNamespace(words=Words("miner", 0), emit=lambda event, **head: self.events.append(event))
        self.clock = BlockClock(self.chain, BLOCK_S)
        parts = SimpleNamespace(chain=self.chain, signer=key("miner-0"), metrics=metrics, clock=self.clock)
        self.parts = cast(Parts, parts)

    async def commit(self, blocks: int = 40) -> int | None:
        last = await self.node.head() + blocks
        return await asyncio.wait_for(commit_by(self.parts, MINER, 3, last, "work hash"), 10)

    async def on_chain(self) -> Any:
        """Fields of our commitment, as the node itself has them."""
        found = await self.node.chain.query("Commitments", "CommitmentOf", [NETUID, key("miner-0").hotkey])
        return None if found is None else found["info"]["fields"]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    path = make_chain(tmp_path / "chain.sqlite", block_s=BLOCK_S)
    keep_caches_in(tmp_path)
    async with DevNode(path) as node, Proxy(node.endpoint) as proxy:
        chain = await connect(path, "miner-0", proxy.endpoint)
        start_clock(path)
        await reach(chain, 1)
        yield Scene(node, proxy, chain)
        await chain.close()


@pytest.mark.parametrize("kind", [*CUTS, "truncate", "1008", "1001", "502", "silence"])
async def test_a_commitment_is_written_once_whatever_happens_to_it(scene: Scene, kind: str) -> None:
    await scene.proxy.fault(kind, 0.3)
    block = await scene.commit()
    assert block is not None and (await scene.chain.roster(block)).neurons[3].commitment == MINER
    assert scene.node.pool.accepted == 1 and scene.proxy.counts[kind] == 1


async def test_a_connection_that_ends_under_a_write_leaves_none_behind(scene: Scene) -> None:
    scene.node.pool.withhold = 1
    writing = asyncio.create_task(scene.chain.commit([Field("Raw", b"x")]))
    while not scene.node.pool.accepted:  # noqa: ASYNC110 (the node sends no event)
        await asyncio.sleep(0.02)
    await scene.proxy.fault("1001", 0.1)
    with pytest.raises(ChainUnreachable):
        await writing
    await reach(scene.chain, await scene.node.head() + 2)
    assert [task.get_name() for task in asyncio.all_tasks()].count("rpc-session") == 1


async def test_a_write_that_a_reorganisation_drops_is_written_again(scene: Scene) -> None:
    looking = asyncio.create_task(scene.clock.run())
    scene.node.pool.lose = 1
    assert await scene.commit() is not None
    async with asyncio.timeout(10):
        while not await scene.on_chain():  # noqa: ASYNC110 (the node sends no event)
            await asyncio.sleep(BLOCK_S)
    looking.cancel()
    assert "a reorganisation took it out" in scene.events[0].detail and scene.node.pool.accepted == 2


async def test_a_cancelled_write_is_not_in_the_way_of_the_next(scene: Scene) -> None:
    await scene.chain.commit([Field("Raw", b"first")])
    await scene.proxy.fault("silence", 0.4)
    cancelled = asyncio.create_task(scene.chain.commit([Field("Raw", b"second")]))
    await asyncio.sleep(0.2)
    scene.proxy.cut()
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    async with asyncio.timeout(8):
        while True:
            try:
                await scene.chain.commit([Field("Raw", b"third")])
                break
            except ChainUnreachable:  # the cut is noticed
                await asyncio.sleep(BLOCK_S)
    assert scene.node.pool.accepted == 2


async def test_old_blocks_are_read_as_far_as_a_node_keeps_them(scene: Scene, tmp_path: Path) -> None:
    old, roster = await scene.chain.block_hash(1), await scene.chain.roster(1)
    await reach(scene.chain, 8)
    scene.node.keep_blocks = 3
    fresh = await connect(tmp_path / "chain.sqlite", "miner-1", scene.node.endpoint)
    assert await fresh.block_hash(1) == old and await fresh.roster(7)
    with pytest.raises(ChainFault, match=r"--subtensor\.archive_endpoint"):
        await fresh.roster(1)
    async with DevNode(scene.node.path) as archive:
        options = {"netuid": NETUID, "network": "local", "signer": key("miner-1"), "cache_dir": tmp_path}
        helped = await BittensorChain.connect(**options, endpoint=scene.node.endpoint, archive=archive.endpoint)
        assert await helped.roster(1) == roster
        await helped.close()
    await fresh.close()


async def test_a_block_costs_at_most_one_request(scene: Scene) -> None:
    looking = asyncio.create_task(scene.clock.run())
    await scene.clock.reached(3)
    before, began = sum(scene.node.asked.values()), scene.clock.head
    await scene.clock.reached(began + 10)
    asked = sum(scene.node.asked.values()) - before
    looking.cancel()
    assert asked <= 10


@pytest.mark.parametrize("trouble", ["mute", "behind"])
async def test_the_head_moves_on_and_never_back(scene: Scene, trouble: str) -> None:
    await reach(scene.chain, 6)
    setattr(scene.node, trouble, 4)
    if trouble == "behind":
        scene.proxy.cut()
    heads = [6]
    async with asyncio.timeout(10):
        while heads[-1] < 12:
            try:
                heads.append((await scene.chain.head()).number)
            except ChainUnreachable:
                pass
            await asyncio.sleep(BLOCK_S / 2)
    assert heads == sorted(heads)


async def test_a_chain_that_began_anew_is_not_taken_for_the_old_one(scene: Scene, tmp_path: Path) -> None:
    await reach(scene.chain, 4)
    await scene.node.rewind(0)
    scene.proxy.cut()
    with pytest.raises(Exception, match="is not the chain that this node knows"):
        for _ in range(60):
            try:
                await scene.chain.head()
            except ChainUnreachable:
                pass
            await asyncio.sleep(BLOCK_S)


async def test_an_outage_leaves_no_trace_and_no_wait(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("refuse", "429"):
        await scene.proxy.fault(kind, 0.2)
        with pytest.raises(ChainUnreachable):
            for _ in range(50):
                await scene.chain.block_hash(0)
                await scene.chain.head()
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
    began = time.monotonic()
    await scene.chain.close()
    gc.collect()
    await asyncio.sleep(0)
    assert time.monotonic() - began < 6
    assert [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR] == []


async def test_weights_are_set_on_every_runtime(tmp_path: Path) -> None:
    """SDK 11.3.0 was released with 461, which has not the item that it reads before it sets weights."""
    assert set(SPECS) < TESTED_SPECS
    path = make_chain(tmp_path / "chain.sqlite", block_s=BLOCK_S)
    keep_caches_in(tmp_path)
    for spec in SPECS:
        async with DevNode(path, spec=spec) as node:
            start_clock(path)
            chain = await connect(path, "validator-0", node.endpoint)
            last = (await chain.roster((await chain.head()).number)).neurons[1].last_update
            await reach(chain, last + 3)
            block = await chain.set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
            assert (await chain.weights(block))[1] == pytest.approx({3: 0.25, 4: 0.75}, abs=1e-3)
            await chain.close()
