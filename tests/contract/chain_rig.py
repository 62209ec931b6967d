"""A local chain with a few neurons, and one client per hotkey, for the chain tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair
from distributed_training.chain.local.genesis import REGISTRATION_RAO, GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.store import ChainParams
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.chain.memory import Ledger, MemoryChain

NETUID = 7
SEED = 11
VERSION_KEY = 3
NAMES = ("owner", "validator-0", "validator-1", "miner-0", "miner-1")
STAKES = {"validator-0": 300.0, "validator-1": 100.0}
COLDKEY = derive_coldkey(SEED, "local")
AnyChain = BittensorChain | MemoryChain


def key(name: str) -> LocalKey:
    return LocalKey(derive_keypair(SEED, name))


def genesis() -> list[GenesisNeuron]:
    return [
        GenesisNeuron(key(name).hotkey, COLDKEY.ss58_address, STAKES.get(name, 0.0), name in STAKES) for name in NAMES
    ]


def make_chain(path: Path, *, block_s: float = 0.1, tempo: int = 1000, rate_limit: int = 3, **changes: int) -> Path:
    create_chain(
        path,
        seed=SEED,
        block_s=block_s,
        netuid=NETUID,
        tempo=tempo,
        weights_rate_limit=rate_limit,
        version_key=VERSION_KEY,
        owner_hotkey=key("owner").hotkey,
        owner_coldkey=COLDKEY.ss58_address,
        neurons=genesis(),
        **{"max_uids": 8, **changes},
    )
    return path


async def connect(path: Path, name: str) -> BittensorChain:
    return await BittensorChain.connect(
        netuid=NETUID,
        network="local",
        endpoint=None,
        signer=key(name),
        cache_dir=path.parent,
        substrate=local_substrate(path),
    )


@dataclass
class Rig:
    """Clients by name, made on demand and closed at the end. One of `path` and `ledger` is there."""

    path: Path | None
    ledger: Ledger | None = None
    clients: dict[str, AnyChain] = field(default_factory=dict)

    async def client(self, name: str) -> AnyChain:
        if name not in self.clients:
            if self.path is not None:
                self.clients[name] = await connect(self.path, name)
            else:
                assert self.ledger is not None
                self.clients[name] = MemoryChain(self.ledger, key(name).hotkey)
        return self.clients[name]

    def start_clock(self) -> None:
        if self.path is not None:
            start_clock(self.path)
        elif self.ledger is not None:
            self.ledger.start_clock()


@asynccontextmanager
async def rig(path: Path) -> AsyncIterator[Rig]:
    made = Rig(path)
    try:
        yield made
    finally:
        for client in made.clients.values():
            await client.close()


@asynccontextmanager
async def memory_rig(
    *, block_s: float = 0.1, tempo: int = 1000, rate_limit: int = 3, serving_rate_limit: int = 0
) -> AsyncIterator[Rig]:
    params = ChainParams(
        SEED, block_s, NETUID, tempo, rate_limit, VERSION_KEY, 8, 64, serving_rate_limit, 4096, REGISTRATION_RAO,
        key("owner").hotkey, COLDKEY.ss58_address,
    )  # fmt: skip
    yield Rig(None, Ledger(params, genesis()))


World = Callable[..., AbstractAsyncContextManager[Rig]]


async def reach(chain: AnyChain, block: int) -> None:
    async with asyncio.timeout(20):
        while (await chain.head()).number < block:  # noqa: ASYNC110 (the clock sends no event)
            await asyncio.sleep(0.01)
