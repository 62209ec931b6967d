"""What the demo reads from the chain: always through the same client as the nodes, and only past blocks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.local.store import open_file
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.localnet.layout import RunPaths
from distributed_training.protocol.manifest import RunManifest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shares:
    """As of one block: validator uid -> {uid: share of its weights}, and uid -> incentive of the last epoch."""

    block: int
    weights: dict[int, dict[int, float]]
    incentive: dict[int, float]


def with_chain(paths: RunPaths, manifest: RunManifest, work: Callable[[BittensorChain], Awaitable[T]]) -> T:
    """Open the run's chain, do `work`, close it. For use outside an event loop. Raises ChainFault."""

    async def opened() -> T:
        chain = await BittensorChain.connect(
            netuid=manifest.netuid,
            network="local",
            endpoint=None,
            signer=LocalKey(derive_keypair(0, "reader")),  # reads need no key; the client wants one
            cache_dir=paths.root / "cache",
            substrate=local_substrate(paths.chain),
        )
        try:
            return await work(chain)
        finally:
            await chain.close()

    return asyncio.run(opened())


async def shares_at(chain: BittensorChain, block: int) -> Shares:
    weights, roster = await asyncio.gather(chain.weights(block), chain.roster(block))
    return Shares(
        block=block,
        weights={uid: row for uid, row in sorted(weights.items()) if row},
        incentive={neuron.uid: neuron.incentive for neuron in roster.neurons},
    )


async def newest_block(chain: BittensorChain) -> int:
    return (await chain.head()).number


def genesis_time(paths: RunPaths) -> float | None:
    """Unix time of block 0; None while the clock does not run."""
    with closing(open_file(paths.chain)) as connection:
        (value,) = connection.execute("select value from meta where name = 'genesis_time'").fetchone()
    return json.loads(value)
