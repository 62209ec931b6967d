"""A chain that a person asks: no node, no wallet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from distributed_training.addresses import FILE
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.paths import typed
from distributed_training.settings.arguments import CACHE


@asynccontextmanager
async def asked(
    network: str, endpoint: str | None, netuid: int, cache: Path | None = None
) -> AsyncIterator[BittensorChain]:
    """`endpoint`, ws://... or file:PATH of a local chain, wins over `network`. Raises ConfigError, ChainUnreachable."""
    local = endpoint is not None and endpoint.startswith(FILE)
    chain = await BittensorChain.connect(
        netuid=netuid,
        network=network,
        endpoint=None if local else endpoint,
        signer=LocalKey(derive_keypair(0, "reader")),  # reads need no key; the client wants one
        cache_dir=(cache or typed(CACHE)) / "chain",
        substrate=local_substrate(Path(str(endpoint).removeprefix(FILE))) if local else None,
    )
    try:
        yield chain
    finally:
        await chain.close()
