"""Several processes on one local chain: past blocks never change, heads never go back, all see the same."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.errors import ChainRefused
from distributed_training.protocol.types import Field

SEED = 5
NODES = 4
BLOCKS = 40
BLOCK_S = 0.1

Results = Any  # a multiprocessing queue of (index, what was seen, or an error's text)


async def client(path: Path, index: int) -> BittensorChain:
    return await BittensorChain.connect(
        netuid=1,
        network="local",
        endpoint=None,
        signer=LocalKey(derive_keypair(SEED, str(index))),
        cache_dir=path.parent,
        substrate=local_substrate(path),
    )


async def write_for_ever(chain: BittensorChain, index: int) -> None:
    for count in range(10**9):
        try:
            if index < 2 and count % 3 == 0:
                await chain.set_weights({uid: 1.0 + count % (uid + 2) for uid in range(NODES)}, 0)
            else:
                await chain.commit([Field("Raw", f"{index}/{count}".encode())])
        except ChainRefused as refusal:
            assert refusal.code in ("limit_exceeded", "rate_limited"), refusal
            await asyncio.sleep(BLOCK_S / 3)


async def node(path: Path, index: int, ready: Barrier) -> dict[int, str]:
    """Write all the time, read each block the moment it appears and an older one again; what each block showed."""
    chain, last = await client(path, index), 0
    seen: dict[int, str] = {}
    await asyncio.to_thread(ready.wait, 60)
    writer = asyncio.create_task(write_for_ever(chain, index))
    while last < BLOCKS and not writer.done():
        head = (await chain.head()).number
        assert head >= last, f"the head went back from {last} to {head}"
        last = head
        for block in (head, head // 2):
            shown = repr((await chain.roster(block), await chain.weights(block)))
            assert seen.setdefault(block, shown) == shown, f"block {block} changed"
        await asyncio.sleep(0.005)
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    assert writer.cancelled(), writer.exception()
    await chain.close()
    return seen


def run_node(path: Path, index: int, ready: Barrier, results: Results) -> None:
    try:
        results.put((index, asyncio.run(node(path, index, ready))))
    except BaseException as error:  # reported to the test, which fails on it
        results.put((index, f"{type(error).__name__}: {error}"))
        raise


def test_past_blocks_are_immutable_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "chain.sqlite"
    keys = [derive_keypair(SEED, str(index)).ss58_address for index in range(NODES)]
    create_chain(
        path,
        seed=SEED,
        block_s=BLOCK_S,
        netuid=1,
        tempo=5,
        weights_rate_limit=2,
        version_key=0,
        max_uids=NODES,
        owner_hotkey=keys[-1],
        owner_coldkey=keys[-1],
        neurons=[
            GenesisNeuron(hotkey, keys[-1], 10.0 if index < 2 else 0.0, index < 2) for index, hotkey in enumerate(keys)
        ],
    )
    context = multiprocessing.get_context("spawn")
    results, ready = context.Queue(), context.Barrier(NODES + 1)
    nodes = [
        context.Process(target=run_node, args=(path, index, ready, results), daemon=True) for index in range(NODES)
    ]
    for process in nodes:
        process.start()
    ready.wait(60)
    start_clock(path)
    reports = [results.get(timeout=60) for _ in nodes]
    for process in nodes:
        process.join(timeout=10)
    assert [report for _, report in reports if isinstance(report, str)] == []

    agreed: dict[int, str] = {}
    for _, seen in reports:
        assert isinstance(seen, dict)
        for block, shown in seen.items():
            assert agreed.setdefault(block, shown) == shown, f"two processes saw different blocks {block}"
    assert len(agreed) >= BLOCKS // 2

    async def afterwards() -> None:
        chain = await client(path, 0)
        for block, shown in agreed.items():
            assert repr((await chain.roster(block), await chain.weights(block))) == shown
        final = await chain.roster(BLOCKS)
        assert abs(sum(n.incentive for n in final.neurons) - 1) < 1e-3
        await chain.close()

    asyncio.run(afterwards())
