"""A local chain with a few neurons, and one client per hotkey, for the chain tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chain_keys import COLDKEY, NAMES, NETUID, SEED, STAKES, VERSION_KEY, key
from devnode import DevNode
from sudo_rig import TEMPO, RealSubnet

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.local.genesis import REGISTRATION_RAO, GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.store import ChainParams
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.chain.memory import Ledger, MemoryChain

REAL_NAMES = {"rate_limit": "weights_set_rate_limit"}
AnyChain = BittensorChain | MemoryChain


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


async def connect(path: Path, name: str, endpoint: str | None = None, netuid: int = NETUID) -> BittensorChain:
    """The SDK over the file, or through a websocket to the node at `endpoint`."""
    return await BittensorChain.connect(
        netuid=netuid,
        network="local",
        endpoint=endpoint,
        signer=key(name),
        cache_dir=path.parent,
        substrate=None if endpoint else local_substrate(path),
    )


@dataclass
class Rig:
    """Clients by name, made on demand and closed at the end. Without `ledger`, `path` is the chain's file, or only a
    place for the SDK's caches where the chain is another's (`subnet`)."""

    path: Path | None
    ledger: Ledger | None = None
    endpoint: str | None = None
    subnet: RealSubnet | None = None
    clients: dict[str, AnyChain] = field(default_factory=dict)

    async def client(self, name: str) -> AnyChain:
        if name not in self.clients:
            if self.path is not None:
                self.clients[name] = await connect(self.path, name, self.endpoint, self.netuid)
            else:
                assert self.ledger is not None
                self.clients[name] = MemoryChain(self.ledger, key(name).hotkey)
        return self.clients[name]

    @property
    def netuid(self) -> int:
        return NETUID if self.subnet is None else self.subnet.netuid

    @property
    def block_s(self) -> float:
        """What a wait may take at least."""
        return 0.05 if self.subnet is None else self.subnet.block_s

    def start_clock(self) -> None:
        if self.subnet is not None:
            return
        if self.path is not None:
            start_clock(self.path)
        elif self.ledger is not None:
            self.ledger.start_clock()


@asynccontextmanager
async def rig(path: Path, endpoint: str | None = None) -> AsyncIterator[Rig]:
    made = Rig(path, endpoint=endpoint)
    try:
        yield made
    finally:
        for client in made.clients.values():
            await client.close()


@asynccontextmanager
async def node_rig(path: Path) -> AsyncIterator[Rig]:
    """Clients that reach the chain through a node, over the SDK's own transport."""
    keep_caches_in(path.parent)
    async with DevNode(path) as node, rig(path, node.endpoint) as made:
        yield made


def keep_caches_in(folder: Path) -> None:
    """The SDK keeps a runtime's metadata by the chain's genesis, which chains of one seed share: one folder each."""
    os.environ["BITTENSOR_RUNTIME_CACHE_DIR"] = str(folder / "runtime")


@asynccontextmanager
async def memory_rig(
    *, block_s: float = 0.1, tempo: int = 1000, rate_limit: int = 3, serving_rate_limit: int = 0
) -> AsyncIterator[Rig]:
    params = ChainParams(
        SEED, block_s, NETUID, tempo, rate_limit, VERSION_KEY, 8, 64, serving_rate_limit, 4096, REGISTRATION_RAO,
        key("owner").hotkey, COLDKEY.ss58_address,
    )  # fmt: skip
    yield Rig(None, Ledger(params, genesis()))


@asynccontextmanager
async def real_rig(subnet: RealSubnet, folder: Path, **changes: int | float) -> AsyncIterator[Rig]:
    """Clients of a development node. `changes` are those of `make_chain`, as far as root can make them."""
    usual = {"tempo": TEMPO, "weights_set_rate_limit": 3, "serving_rate_limit": 0}
    wanted = {REAL_NAMES.get(name, name): int(value) for name, value in changes.items() if name != "block_s"}
    await subnet.set(**wanted)
    for name in wanted:
        if why := subnet.lacks.get(f"sudo_set_{name}"):
            pytest.skip(why)
    made = Rig(folder / "none", endpoint=subnet.endpoint, subnet=subnet)
    try:
        yield made
    finally:
        for client in made.clients.values():
            await client.close()
        await subnet.set(**{name: usual[name] for name in wanted})


World = Callable[..., AbstractAsyncContextManager[Rig]]


async def reach(chain: AnyChain, block: int, block_s: float = 0.05) -> None:
    """Wait for a block; it may take three times as long as it should, and 20 s on top."""
    wait = max(0, block - (await chain.head()).number)
    async with asyncio.timeout(20 + 3 * wait * block_s):
        while (await chain.head()).number < block:  # noqa: ASYNC110 (the clock sends no event)
            await asyncio.sleep(block_s / 5)
