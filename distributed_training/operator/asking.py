"""A chain that a person asks: no node, no wallet."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

from distributed_training.addresses import FILE
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.local.genesis import resume_clock
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.errors import ConfigError, LocalFault
from distributed_training.operator.history import read_only
from distributed_training.paths import is_missing, typed
from distributed_training.settings.arguments import CACHE

MAX_COPY_BYTES = 1 << 30


@asynccontextmanager
async def asked(
    network: str,
    endpoint: str | None,
    netuid: int,
    cache: Path | None = None,
    fallback: Sequence[str] = (),
) -> AsyncIterator[BittensorChain]:
    """`endpoint`, ws://... or file:PATH of a local chain, wins over `network`; `fallback`: for when it does not answer.
    Raises ConfigError, ChainUnreachable."""
    local = endpoint is not None and endpoint.startswith(FILE)
    chain = await BittensorChain.connect(
        netuid=netuid,
        network=network,
        endpoint=None if local else endpoint,
        signer=LocalKey(derive_keypair(0, "reader")),  # reads need no key; the client wants one
        cache_dir=(cache or typed(CACHE)) / "chain",
        substrate=local_substrate(Path(str(endpoint).removeprefix(FILE))) if local else None,
        fallback=() if local else fallback,
    )
    try:
        yield chain
    finally:
        await chain.close()


def local_copy(path: Path, target: Path) -> float | None:
    """The local chain in `path`, which is only read, as of its last closed block, from which on the copy's clock goes.
    Returns how many seconds ago the next block was due, by its own clock; None, and no copy, before its block 0. Raises
    ConfigError, LocalFault, OSError, sqlite3.Error."""
    if is_missing(path):
        raise ConfigError(f"no local chain is at {path}")
    if path.stat().st_size > MAX_COPY_BYTES:
        raise LocalFault(f"{path} is larger than {MAX_COPY_BYTES >> 30} GiB: it is not copied to be looked at")
    with closing(read_only(path)) as source, closing(sqlite3.connect(target)) as copy:
        genesis = json.loads(source.execute("select value from meta where name = 'genesis_time'").fetchone()[0])
        if genesis is None:
            return None
        source.backup(copy)
    return max(0.0, resume_clock(target) - genesis)
