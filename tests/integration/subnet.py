"""A whole subnet in one process and one event loop: real chain file under the real SDK, real roles, tiny model.

    async with running(make_subnet(tmp_path, miners=4), rounds=2) as subnet:  # the clock starts when all are ready
        await finished(subnet)

Nodes talk over one MemorySwitch, or over libp2p on loopback. Waits are bounded and end early, with its exception,
when a node dies.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distributed_training.assembly import Adapters, MakeWorker, honest_worker, live, make_parts
from distributed_training.chain.base import Chain
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair, verify
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.chain.sole import SoleChain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.data.base import PageSource
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.words import write_words
from distributed_training.engine import Engine, load_engine
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics, Sink
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role
from distributed_training.recipes.build import make_manifest
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.settings.config import NodeConfig

WALLET = "local"
HOST = "127.0.0.2"  # the chain refuses 127.0.0.1 as an address to announce
BLOCK_S = 0.15  # on an idle machine; see block_seconds
STAKE = 1000.0
STEPS = 3
FINISHED_ROUNDS = 3  # of the shared run, see conftest.py
TRIES = 3  # of a run that must not be disturbed
PAGE_BYTES = 150  # about five inner steps
MODEL: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 257, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2,
}  # fmt: skip
# About eight thousand parameters in 15 chunks; a round takes 24 blocks, most of them waiting for a busy machine.
OVERRIDES: dict[str, Any] = {
    "max_uids": 12,
    "data": {"sequence_length": 16, "batch_size": 2, "heldout_sequences": 8},
    "inner": {"nominal_steps": STEPS, "max_steps": 8, "learning_rate": 5e-3, "warmup_steps": 1},
    "average": {"chunk_coords": 512, "block_coords": 64, "token_cap": 8 * 32, "initial_tau": 50.0},
    "audit": {"full_share": 0.5, "probe_chunks": 4},
    "timing": {
        "first_block": 4, "finality": 2, "roster_lead": 2, "commit_margin": 2, "commit": 5, "reduce_margin": 2,
        "output": 13, "map": 20, "length": 24, "transfer": 2, "overlap": False,
    },
}  # fmt: skip

WrapPages = Callable[[PageSource], Any]
WrapChain = Callable[[Chain], Any]
Alter = Callable[["Node"], None]
Prepare = Callable[["Subnet"], Awaitable[None]]


@dataclass
class Node:
    """One running node. `events` holds what its metrics were told, oldest first."""

    name: str
    role: Role
    me: Neuron
    config: NodeConfig
    parts: Parts
    engine: Engine
    events: list[dict[str, Any]]
    stack: AsyncExitStack
    task: asyncio.Task[None]

    @property
    def uid(self) -> int:
        return self.me.uid

    @property
    def refusals(self) -> int:
        transport: Any = self.parts.peers.transport
        return transport.refusals

    def all(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of one kind whose fields have these values."""
        return [e for e in self.events if e["event"] == event and fields.items() <= e.items()]

    def rounds(self) -> dict[int, dict[str, Any]]:
        return {e["round"]: e for e in self.all("round")}

    async def stop(self) -> None:
        """As a signal would: cancel, then close everything it opened."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.stack.aclose()


@dataclass
class Subnet:
    root: Path
    seed: int
    manifest: RunManifest
    names: tuple[str, ...]  # in uid order
    libp2p: bool
    switch: MemorySwitch = field(default_factory=MemorySwitch)
    nodes: dict[str, Node] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)  # of a chain node, for those who reach the chain by one

    @property
    def chain_file(self) -> Path:
        return self.root / "chain.sqlite"

    def key(self, name: str) -> LocalKey:
        return LocalKey(derive_keypair(self.seed, name))

    def identity(self, name: str) -> PeerIdentity:
        """The peer key of a node, from seed and name."""
        seed = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=32, person=b"dt-peer-key").digest()
        return PeerIdentity.load_or_create(self.root / "nodes" / name / "identity.key", seed)

    def miners(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.role is Role.MINER]

    def validators(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.role is Role.VALIDATOR]


class EventList:
    """A metrics sink that keeps what it is given."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self._events = events

    def write(self, event: Mapping[str, Any]) -> None:
        self._events.append(dict(event))

    def close(self) -> None:
        pass


def role_of(name: str) -> Role:
    kind = name.partition("-")[0]
    return {"owner": Role.OWNER, "validator": Role.VALIDATOR}.get(kind, Role.MINER)


def make_subnet(
    root: Path,
    *,
    miners: int = 4,
    validators: int = 2,
    owner: bool = True,
    seed: int = 5,
    overrides: Mapping[str, Any] | None = None,
    slower: float = 1.0,
    stakes: Mapping[str, float] | None = None,
    libp2p: bool = False,
) -> Subnet:
    """Pages, manifest and a chain at block 0 whose clock is not started yet. The owner, if any, has uid 0."""
    names = [f"validator-{i}" for i in range(validators)] + [f"miner-{i}" for i in range(miners)]
    names = ["owner", *names] if owner else names
    write_words(root / "text", random.Random(seed), documents=200)
    build_pages(root / "pages", root / "text", num_pages=None, page_bytes=PAGE_BYTES, heldout_bytes=1000)
    fields = {key: dict(value) if isinstance(value, Mapping) else value for key, value in OVERRIDES.items()}
    for key, value in (overrides or {}).items():
        fields[key] = {**fields.get(key, {}), **value} if isinstance(value, Mapping) else value
    fields["public"] = {"run_key": LocalKey(derive_keypair(seed, "owner")).public_key.hex()}
    manifest = make_manifest("local", MODEL, LocalPages(root / "pages"), init_seed=seed, overrides=fields)
    (root / "manifest.json").write_bytes(manifest.canonical())
    subnet = Subnet(root, seed, manifest, tuple(names), libp2p)
    given = {name: STAKE for name in names if role_of(name) is Role.VALIDATOR} | dict(stakes or {})
    coldkey = derive_coldkey(seed, WALLET).ss58_address
    create_chain(
        subnet.chain_file,
        seed=seed,
        block_s=slower * block_seconds(),
        netuid=manifest.netuid,
        tempo=manifest.timing.length,
        weights_rate_limit=2,
        version_key=manifest.version_key,
        max_uids=manifest.max_uids,
        owner_hotkey=subnet.key("owner").hotkey,
        owner_coldkey=coldkey,
        neurons=[GenesisNeuron(subnet.key(n).hotkey, coldkey, given.get(n, 0.0), n in given) for n in names],
    )
    return subnet


def block_seconds() -> float:
    """Longer blocks where others want the processors too: what a round holds depends on no clock, its making does."""
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return BLOCK_S * min(2.5, max(1.0, busy))


async def connect(subnet: Subnet, name: str) -> BittensorChain:
    """A chain client that signs as `name`; the caller closes it."""
    return await BittensorChain.connect(
        netuid=subnet.manifest.netuid,
        network="local",
        endpoint=subnet.endpoints.get(name),
        signer=subnet.key(name),
        cache_dir=subnet.root / "cache",
        substrate=None if name in subnet.endpoints else local_substrate(subnet.chain_file),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def node_config(
    subnet: Subnet, name: str, uid: int, rounds: int | None, steps: int, exact: bool, ahead: bool, hidden: bool
) -> NodeConfig:
    """`steps` inner steps a round. Over memory the address is on chain too, and nobody listens there."""
    return NodeConfig(
        preset="local",
        netuid=subnet.manifest.netuid,
        run_dir=subnet.root,
        local_chain=subnet.chain_file,
        device="cpu",
        wallet={"name": WALLET, "hotkey": name, "path": subnet.root / "wallets"},
        axon={"ip": HOST, "port": free_port() if subnet.libp2p else 21_000 + uid, "outbound_only": hidden},
        rounds=rounds,
        steps_per_round=steps,
        exact_steps=exact,
        train_ahead=ahead,
    )  # type: ignore[call-arg]


async def make_adapters(subnet: Subnet, config: NodeConfig, chain: Chain, stack: AsyncExitStack) -> Adapters:
    name = config.wallet.hotkey
    identity = subnet.identity(name)
    hidden = config.axon.outbound_only
    transport: Any = MemoryTransport(subnet.switch, identity, listens=not hidden)
    if subnet.libp2p:
        from distributed_training.network.libp2p import Libp2pTransport

        path = config.node_dir / "identity.key"
        port = None if hidden else config.axon.port
        transport = Libp2pTransport(path, config.axon.ip, port, config.announced)
    stack.push_async_callback(transport.stop)
    return Adapters(
        chain=chain,
        transport=transport,
        checkpoints=LocalCheckpoints(subnet.root / "checkpoints"),
        signer=subnet.key(name),
        verify=verify,
        sign_as_peer=identity.sign,
        verify_peer=verify_peer,
    )


async def build_node(
    subnet: Subnet,
    name: str,
    *,
    rounds: int | None = None,
    steps: int = STEPS,
    exact: bool = False,
    ahead: bool = False,
    hidden: bool = False,
    pages: WrapPages | None = None,
    wrap_chain: WrapChain | None = None,
    sinks: Callable[[], Sequence[Sink]] | None = None,
) -> Node:
    """Everything of a node but its main loop: `task` does nothing until `start_node` replaces it.

    `rounds`: it stops when so many rounds of the run are settled. `exact`: it ends when a round had fewer steps.
    `ahead`: it trains ahead. `hidden`: no peer can dial it. `pages` wraps its page source, `wrap_chain` its chain.
    `sinks`: it tells them its events too, each in a thread of its own.
    """
    stack, events = AsyncExitStack(), []
    chain = await connect(subnet, name)
    stack.push_async_callback(chain.close)
    me = (await chain.roster((await chain.head()).number)).by_hotkey(subnet.key(name).hotkey)
    assert me is not None, f"{name} is not registered"
    config = node_config(subnet, name, me.uid, rounds, steps, exact, ahead, hidden)
    engine = load_engine(config, subnet.manifest, LocalPages(subnet.root / "pages"))
    if pages is not None:
        engine = Engine(engine.model, engine.loop, pages(engine.source), engine.tokenizer)
    role = role_of(name)
    heard: list[Sink] = [EventList(events), *(sinks() if sinks else ())]
    metrics = Metrics(heard, role=role.name.lower(), uid=me.uid, threads=sinks is not None)
    journal = Journal(config.node_dir / "journal.sqlite")
    stack.callback(journal.close)
    sole = await SoleChain.begin(
        chain, subnet.key(name), subnet.identity(name).public_key, subnet.manifest.timing.length
    )
    seen_chain = sole if wrap_chain is None else wrap_chain(sole)
    adapters = await make_adapters(subnet, config, seen_chain, stack)
    training = TrainingThread()
    stack.callback(training.close)
    parts = await make_parts(config, subnet.manifest, adapters, journal, metrics, training)
    await adapters.transport.start()
    idle = asyncio.create_task(asyncio.sleep(0))
    node = Node(name, role, me, config, parts, engine, events, stack, idle)
    subnet.nodes[name] = node
    return node


async def start_node(
    subnet: Subnet, name: str, *, make_worker: MakeWorker = honest_worker, alter: Alter | None = None, **build: Any
) -> Node:
    """Build and run one node; returns when it is ready. `alter` may change its parts before it runs."""
    node = await build_node(subnet, name, **build)
    if alter is not None:
        alter(node)
    life = live(node.role, node.config, node.parts, node.engine, node.me, make_worker)
    node.task = asyncio.create_task(life, name=name)
    await seen(node, "ready", timeout_s=30)
    return node


@asynccontextmanager
async def running(
    subnet: Subnet,
    *,
    without: Iterable[str] = (),
    each: Mapping[str, Mapping[str, Any]] | None = None,
    before_clock: Prepare | None = None,
    **common: Any,
) -> AsyncIterator[Subnet]:
    """Start every node but `without`, then the clock; stops them at the end.

    `common` are arguments of `start_node`, `each` more of them by node name.
    """
    assert "PYTEST_XDIST_WORKER" not in os.environ, "rounds on a real clock want no test beside them: mark them `alone`"
    torch.set_num_threads(1)
    try:
        for name in subnet.names:
            if name not in set(without):
                await start_node(subnet, name, **{**common, **(each or {}).get(name, {})})
        if before_clock is not None:
            await before_clock(subnet)
        start_clock(subnet.chain_file)
        yield subnet
    finally:
        for node in subnet.nodes.values():
            await node.stop()


async def seen(node: Node, event: str, *, timeout_s: float, **fields: Any) -> dict[str, Any]:
    """The first such event of a node, waited for. Raises what ended the node, or TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not (found := node.all(event, **fields)):
            if node.task.done():
                node.task.result()
                raise AssertionError(f"{node.name} ended without {event} {fields}")
            await asyncio.sleep(0.02)
    return found[0]


async def scored(subnet: Subnet, round_index: int, *, timeout_s: float = 60) -> None:
    """Until every node has settled a round and every validator has scored it and set weights."""
    await settled(subnet, round_index, timeout_s=timeout_s)
    for node in subnet.validators():
        await seen(node, "weights", round=round_index, timeout_s=timeout_s)


async def settled(subnet: Subnet, round_index: int, *, timeout_s: float = 60, names: Iterable[str] = ()) -> None:
    """Until these nodes (all) have settled a round."""
    for name in tuple(names) or tuple(subnet.nodes):
        await seen(subnet.nodes[name], "round", round=round_index, timeout_s=timeout_s)


async def finished(subnet: Subnet, *, timeout_s: float = 90) -> None:
    """Until every node has run its rounds."""
    async with asyncio.timeout(timeout_s):
        await asyncio.gather(*(node.task for node in subnet.nodes.values()))


def disturbed(subnet: Subnet) -> bool:
    """Did this machine stand still so long that a miner had fewer steps, or that a probe did not count?"""
    fewer = any(event["steps"] < STEPS for node in subnet.miners() for event in node.all("train"))
    audits = [event for node in subnet.validators() for event in node.all("audit", verdict="pass")]
    return fewer or any(event["goodput_bytes_per_s"] is None for event in audits)


def check_same_states(subnet: Subnet, witness: str, rounds: int) -> None:
    """Every round was applied, and every node has the witness's root after each round that it settled."""
    expected = {index: event["state_root"] for index, event in subnet.nodes[witness].rounds().items()}
    assert sorted(expected) == list(range(rounds))
    for node in subnet.nodes.values():
        found = {index: event["state_root"] for index, event in node.rounds().items()}
        assert found.items() <= expected.items(), node.name
        assert rounds - 1 in found
        assert all(event["applied"] for event in node.rounds().values())
