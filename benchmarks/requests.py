"""What a node asks of the chain: requests by block and kind, counted under the SDK in a subnet that runs."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import bittensor as bt
import torch

from distributed_training.assembly import Adapters, live, make_parts
from distributed_training.chain.base import Head
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import derive_coldkey, verify
from distributed_training.chain.line import Line
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.chain.sole import SoleChain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.journal import Journal
from distributed_training.journalled import JournalledChain
from distributed_training.metrics.base import Metrics
from distributed_training.network.identity import verify_peer
from distributed_training.network.memory import MemoryTransport
from distributed_training.operator.safety import Watch
from distributed_training.protocol.types import Role, Roster
from distributed_training.roles.parts import TrainingThread
from distributed_training.settings.arguments import real, whole
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.world import STAKE, WALLET, World, make_world, role_of

DESCRIPTION = """\
Run a subnet in this process, the real roles and the real SDK over a local chain, and count what each node asks of the
chain in one block, by kind, from the first block on:

  head      the newest and the newest final block, and the subscriptions to them
  hash      block hashes that a beacon needs
  writes    commitments, addresses, weights: with all that the SDK asks around one (number, era, block, events)
  other     the subnet's parameters, the version of the runtime, what a place costs and how safe ours is
  roster    neurons and commitments of a block, which a round needs at five blocks and nothing replaces

A call of the SDK counts as the requests that it is over a websocket. The goal is at most 2 a block beside the roster's.
"""
GOAL = 2.0
# What the SDK sends for one call; what is not named here sends nothing.
REQUESTS = {
    "block_number": 1, "finalized_block_number": 2, "block_hash": 1, "spec_version": 1, "query": 1, "query_map": 2,
    "query_batch": 1, "runtime_call": 1, "get_block": 3, "blocks": 1, "estimate_fee": 2, "submit": 10,
}  # fmt: skip
KINDS = ("head", "hash", "writes", "other", "roster")
KIND: ContextVar[str] = ContextVar("kind of request", default="other")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--miners", type=whole(1, 16, "miners"), default=2, metavar="N", help="default 2")
    add("--validators", type=whole(1, 8, "validators"), default=1, metavar="N", help="default 1")
    add("--rounds", type=whole(1, 20, "rounds"), default=3, metavar="N", help="default 3, of 54 blocks")
    add("--block-s", type=real(0.1, 12.0, "seconds"), default=0.5, metavar="S", help="seconds of a block; default 0.5")


class Counted:
    """The local chain under the SDK; what is asked of it is counted by kind."""

    def __init__(self, path: Path, counts: Counter[str]) -> None:
        self._inner, self._counts = LocalSubstrate(path), counts
        self.token_symbols: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in REQUESTS:
            return found

        def asked(*args: Any, **options: Any) -> Any:
            self._counts[KIND.get()] += REQUESTS[name]
            return found(*args, **options)

        return asked


class Kinds(BittensorChain):
    """Says of each request what it is for."""

    async def head(self) -> Head:
        return await self._as("head", super().head)

    async def block_hash(self, number: int) -> bytes:
        return await self._as("hash", lambda: super(Kinds, self).block_hash(number))

    async def roster(self, block: int) -> Roster:
        return await self._as("roster", lambda: super(Kinds, self).roster(block))

    async def _written(self, *args: Any) -> int:
        return await self._as("writes", lambda: super(Kinds, self)._written(*args))

    async def _as(self, kind: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        token = KIND.set(KIND.get() if KIND.get() in ("roster", "writes") else kind)  # the outermost counts
        try:
            return await ask()
        finally:
            KIND.reset(token)


def run(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    options = SimOptions(miners=args.miners, validators=args.validators, rounds=args.rounds, seed=1)
    with tempfile.TemporaryDirectory(prefix="dt-bench-", ignore_cleanup_errors=True) as folder:
        world = make_world(options, Path(folder))
        counts = {name: Counter[str]() for name in options.genesis_names()}
        blocks = asyncio.run(_run(world, counts, args.block_s))
    rows = [_row(name, counts[name], blocks) for name in counts]
    over = [r for r in rows if r["beside the roster"] > GOAL]
    failures = [f"{r['node']}: {r['beside the roster']:.2f} requests a block, the goal is {GOAL:.0f}" for r in over]
    return {"name": "requests", "rows": rows, "failures": failures, "blocks": blocks}


def _row(name: str, counts: Counter[str], blocks: int) -> dict[str, Any]:
    each = {kind: round(counts[kind] / blocks, 3) for kind in KINDS}
    return {"node": name, "blocks": blocks, **each, "beside the roster": round(sum(each.values()) - each["roster"], 3)}


async def _run(world: World, counts: dict[str, Counter[str]], block_s: float) -> int:
    """Returns how many blocks passed until all had run their rounds."""
    path = world.root / "chain.sqlite"
    _chain(world, path, block_s)
    training = TrainingThread()  # the one model of the process
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stack.callback(training.close)
        for name in counts:
            tasks.create_task(await _node(world, path, name, counts[name], training, stack), name=name)
        start_clock(path)
    return await LocalSubstrate(path).block_number()


def _chain(world: World, path: Path, block_s: float) -> None:
    manifest, coldkey = world.manifest, derive_coldkey(world.options.seed, WALLET).ss58_address
    hotkeys = {name: world.key(name).hotkey for name in world.options.genesis_names()}
    stakes = {name: STAKE if role_of(name) is Role.VALIDATOR else 0.0 for name in hotkeys}
    create_chain(
        path,
        seed=world.options.seed,
        block_s=block_s,
        netuid=manifest.netuid,
        tempo=manifest.timing.length,
        weights_rate_limit=2,
        version_key=manifest.version_key,
        max_uids=manifest.max_uids,
        owner_hotkey=hotkeys["owner"],
        owner_coldkey=coldkey,
        neurons=[GenesisNeuron(hotkeys[n], coldkey, stakes[n], stakes[n] > 0) for n in hotkeys],
    )


async def _node(
    world: World, path: Path, name: str, counts: Counter[str], training: TrainingThread, stack: AsyncExitStack
) -> Any:
    """The life of one node, all of it real but its transport."""
    key, role, identity = world.key(name), role_of(name), world.identity(name)
    line = Line(["local"], cast(bt.Substrate, Counted(path, counts)))
    client = Kinds(line, world.manifest.netuid, key)
    stack.push_async_callback(client.close)
    me = (await client.roster(0)).by_hotkey(key.hotkey)
    assert me is not None, "it is in the genesis block"
    config = world.config(name, me.uid)
    metrics = Metrics([], role=role.name.lower(), uid=me.uid)
    journal = Journal(config.node_dir / "journal.sqlite")
    stack.callback(journal.close)
    transport = MemoryTransport(world.switch, identity.public_key)
    stack.push_async_callback(transport.stop)
    block_s = (await client.params()).block_s
    chain = await JournalledChain.begin(client, block_s, journal, world.manifest.timing)
    watch = Watch(client, chain, world.manifest, me, metrics)
    stack.callback(asyncio.create_task(watch.run(block_s)).cancel)
    adapters = Adapters(
        chain=await SoleChain.begin(chain, key, identity.public_key, world.manifest.timing.length),
        transport=transport,
        checkpoints=LocalCheckpoints(world.root / "checkpoints"),
        signer=key,
        verify=verify,
        sign_as_peer=identity.sign,
        verify_peer=verify_peer,
    )
    parts = await make_parts(config, world.manifest, adapters, journal, metrics, training)
    await transport.start()
    return live(role, config, parts, world.engine, me)
