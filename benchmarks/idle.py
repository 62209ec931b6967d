"""What a node that waits burns: CPU of this process for each block, while it trains and while slices are awaited."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from distributed_training.averaging.collect import Collector
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair
from distributed_training.chain.local.genesis import GenesisNeuron
from distributed_training.chain.local.store import ChainParams
from distributed_training.chain.memory import Ledger, MemoryChain
from distributed_training.protocol.types import Round, SliceSpec
from distributed_training.settings.arguments import real, whole

DESCRIPTION = """\
Run one node's block clock on a chain in this process, in real time, and count the process's CPU for each block:

  waits     tasks wait for blocks at the head and for final ones; nothing else (a round's training, seen from the loop)
  exchange  besides, the roster of every new block is read and who has an output in it is found out, as between s+D
            and s+X; what the SDK takes to decode a metagraph comes on top on a real chain

Most of a block's time is none of the CPU's: a block of the mainnet has 12,000 ms.
"""
WAITERS = 8
Each = Callable[[], Awaitable[object]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--neurons", type=whole(2, 1024, "neurons"), default=256, metavar="N", help="of the subnet (default 256)")
    add("--blocks", type=whole(5, 1000, "blocks"), default=40, metavar="N", help="measured of each (default 40)")
    add("--block-s", type=real(0.05, 12.0, "seconds"), default=0.25, metavar="S", help="of a block (default 0.25)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    return {"name": "idle", "rows": asyncio.run(_measured(args.neurons, args.blocks, args.block_s))}


async def _measured(neurons: int, blocks: int, block_s: float) -> list[dict[str, Any]]:
    keys = [LocalKey(derive_keypair(1, f"n{i}")) for i in range(neurons)]
    ledger = _ledger(keys, block_s)
    ledger.start_clock()
    chain = MemoryChain(ledger, keys[0].hotkey)
    clock = BlockClock(chain, block_s)
    running = asyncio.create_task(clock.run())
    await clock.reached(1)
    rows = [await _row("waits", clock, blocks, None)]
    roster = await chain.roster(clock.head)
    round_ = Round(0, bytes(8), 0, 0, 0, *([1 << 30] * 5))
    specs = tuple(SliceSpec(i, i, i + 1, n.public_key) for i, n in enumerate(roster.neurons))
    plan = cast(RoundPlan, SimpleNamespace(round=round_, roster=roster, slices=specs))
    collector = Collector(cast(Any, None), cast(Any, None), chain, clock, keys[0].public_key)
    rows.append(await _row("exchange", clock, blocks, lambda: collector.wanted(plan, clock.head)))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return [{"neurons": neurons, **row} for row in rows]


async def _row(
    what: str, clock: BlockClock, blocks: int, each: Callable[[], Awaitable[object]] | None
) -> dict[str, Any]:
    """CPU of the process over so many blocks; `each` is done in every one."""
    last = clock.head + blocks
    waiting = [asyncio.create_task(clock.reached(last) if i % 2 else clock.final(last)) for i in range(WAITERS)]
    began = time.process_time()
    for block in range(clock.head + 1, last + 1):
        await clock.reached(block)
        if each is not None:
            await each()
    spent = time.process_time() - began
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return {"state": what, "cpu_ms_per_block": round(1000 * spent / blocks, 2), "blocks": blocks}


def _ledger(keys: list[LocalKey], block_s: float) -> Ledger:
    coldkey = derive_coldkey(1, "idle").ss58_address
    params = ChainParams(
        seed=1, block_s=block_s, netuid=1, tempo=360, weights_rate_limit=2, version_key=1, max_uids=len(keys),
        max_validators=64, serving_rate_limit=0, immunity_period=1 << 20, burn_rao=1, owner_hotkey=keys[0].hotkey,
        owner_coldkey=coldkey,
    )  # fmt: skip
    return Ledger(params, [GenesisNeuron(key.hotkey, coldkey, 0.0, False) for key in keys])
