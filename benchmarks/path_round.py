"""Rounds of the all-reduce between real nodes of one process, over libp2p on loopback: who spends what, by step.

    python -m benchmarks.path_round round PARAMS PEERS ROUNDS    CPU by step, of the last round
    python -m benchmarks.path_round wait PARAMS PEERS SECONDS    CPU of who waits for a sender that is silent

Prints one JSON object. In a round the chain's head moves when an output hash is published, so nobody waits for a block.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.path_peers import Peer, Told, children_s, mainnet_manifest, opened, planned
from benchmarks.path_steps import STEPS, Meter
from distributed_training.averaging import combine
from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Head
from distributed_training.chain.clock import BlockClock
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import Counted
from distributed_training.training import outer

BLOCK_S, MAINNET_BLOCK_S = 0.1, 12.0
# Blocks so short, and so many, that no deadline matters.
TIMING = {"first_block": 10, "roster_lead": 1, "commit_margin": 1, "commit": 10, "finality": 1, "reduce_margin": 10,
          "output": 1000, "map": 2000, "length": 3000}  # fmt: skip


def patient_manifest() -> RunManifest:
    manifest = mainnet_manifest()
    return manifest.model_copy(update={"timing": manifest.timing.model_copy(update=TIMING)})


async def one_round(peers: list[Peer], chain: Told, clock: BlockClock, index: int) -> dict[str, float]:
    """Wall seconds of the phases; all nodes at once."""
    round_ = replace(peers[0].manifest.round(0), index=index)
    began = time.perf_counter()
    work = await asyncio.gather(*(asyncio.to_thread(p.encode, index) for p in peers))
    encoded = time.perf_counter()
    plan = await planned(peers, list(work), chain, round_)
    await clock.final(round_.commit_block)
    published, marks = list[bytes](), dict[str, float]()

    async def one(peer: Peer, own: OwnWork) -> None:
        async def publish(output: bytes, amends: bytes | None) -> bool:
            chain.say(peer.key.public_key, second_round=index, second=output)
            published.append(output)
            if len(published) == len(peers):
                marks["reduced_s"] = time.perf_counter() - encoded
                chain.block = round_.output_block + 1
            return True

        gathering = asyncio.create_task(peer.butterfly.collector.gather(plan, round_.map_block))
        await peer.butterfly.contribute(plan, own, publish)
        outputs = await gathering
        marks["gathered_s"] = time.perf_counter() - encoded
        await asyncio.to_thread(_settle, peer, plan, outputs)

    await asyncio.gather(*(one(p, w) for p, w in zip(peers, work, strict=True)))
    assert len({p.root for p in peers}) == 1, "the states differ"
    return {"encode_s": encoded - began, **marks, "whole_s": time.perf_counter() - began}


def _settle(peer: Peer, plan: RoundPlan, outputs: dict[int, SliceOutput]) -> None:
    made = combine.combine(plan, Counted(tuple(outputs), "applied", {}), outputs, peer.manifest)
    assert len(outputs) == len(plan.slices) and all(made.chunks), "a slice lacks, or the gate let something out"
    carry = replace(made.carry, tau=peer.state.carry.tau)
    peer.state, peer.root = outer.outer_step(
        peer.state, made.averages(plan.layout), carry, peer.manifest.outer
    )  # fmt: skip


async def rounds(folder: Path, params: int, count: int, number: int) -> dict[str, Any]:
    meter, walls, ns = Meter(), dict[str, float](), dict[str, float]()
    async with opened(folder, patient_manifest(), count, params, BLOCK_S) as (peers, chain, clock):
        ticking = asyncio.create_task(clock.run())
        with meter.watching(STEPS):
            for index in range(number):
                meter.clear()
                clock._head, chain.block = Head(0, 0), peers[0].manifest.round(0).start_block
                daemons, own = children_s(), time.process_time()
                walls = await one_round(peers, chain, clock, index)
                own, daemons = time.process_time() - own, children_s() - daemons
                steps = meter.seconds()
                rest = {"streams, loop, the rest": own - sum(steps.values()), "libp2p daemon": daemons}
                ns = {step: 1e9 * took / params / count for step, took in (steps | rest).items()}
        ticking.cancel()
    return {"ns": ns, "walls": walls, "mib": _peak_mib() / count}


async def waits(folder: Path, params: int, count: int, seconds: int) -> dict[str, Any]:
    """By mainnet's timing. The last node has committed and sends nothing: all others hold what they have, and wait."""
    async with opened(folder, mainnet_manifest(), count, params, MAINNET_BLOCK_S) as (peers, chain, clock):
        plan = await planned(peers, [p.encode(0) for p in peers], chain, peers[0].manifest.round(0))
        ticking, work = asyncio.create_task(clock.run()), [p.encode(0) for p in peers]

        async def publish(output: bytes, amends: bytes | None) -> bool:
            raise AssertionError("nobody is done")

        async def one(peer: Peer, own: OwnWork) -> None:
            gathering = peer.butterfly.collector.gather(plan, plan.round.map_block)
            await asyncio.gather(peer.butterfly.contribute(plan, own, publish), gathering)

        waiting = [asyncio.create_task(one(p, w)) for p, w in zip(peers[:-1], work[:-1], strict=True)]
        await asyncio.sleep(3)
        daemons, own = children_s(), time.process_time()
        await asyncio.sleep(seconds)
        own, daemons = time.process_time() - own, children_s() - daemons
        for task in (*waiting, ticking):
            task.cancel()
        await asyncio.gather(*waiting, ticking, return_exceptions=True)
    blocks = seconds / MAINNET_BLOCK_S
    return {"own_ms": 1e3 * own / blocks / (count - 1), "daemon_ms": 1e3 * daemons / blocks / count}


def _peak_mib() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main(what: str, params: int, count: int, number: int) -> None:
    with TemporaryDirectory(prefix="dt-path-") as name:
        made = (
            rounds(Path(name), params, count, number) if what == "round" else waits(Path(name), params, count, number)
        )
        print(json.dumps(asyncio.run(made)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
