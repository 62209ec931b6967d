"""Drives one weather run: the chain node, a proxy for each process, the legs, and who crashed."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fault_subnet import FaultSubnet
from distributed_training.chain.local.genesis import start_clock
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import REPOSITORY, WALLET, NodeSpec
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.metrics.following import Follower
from distributed_training.protocol.types import Role

POLL_S = 0.5
READY_S = 240.0
RECOVERY_ROUNDS = 3  # after an outage: the round it fell into, the one that was missed, one that must be whole
PAUSE_AFTER_CRASH_S = 5.0
MANY_ROUNDS = 1 << 16

Say = Callable[[str], None]


@dataclass
class Leg:
    """A stretch of the run by the wall clock. `faults` are those of its own time."""

    name: str
    began: float
    ended: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    crashes: int = 0


class WeatherRun:
    """Use `run` once; afterwards `legs`, `ended` and `requests` tell of it."""

    def __init__(self, subnet: FaultSubnet, args: argparse.Namespace, say: Say) -> None:
        self.subnet, self._args, self._say = subnet, args, say
        self.legs: list[Leg] = []
        self.ended: list[str] = []  # node and exit code of every process that ended by itself
        self.requests: Counter[str] = Counter()  # that reached the chain node, by method
        self._followers = {s.name: Follower(subnet.paths.node(s.name) / "events.jsonl") for s in subnet.honest}
        self._ready: set[str] = set()
        self.genesis = 0.0
        self._proxies: dict[str, Any] = {}

    async def run(self) -> None:
        devnode = stand_in()
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a cut handshake is the weather's doing
        async with AsyncExitStack() as stack:
            spec = self._args.spec or devnode.SPECS[-1]
            node = await stack.enter_async_context(devnode.DevNode(self.subnet.paths.chain, spec=spec))
            for at, each in enumerate(self.subnet.honest):
                proxy = devnode.Proxy(node.endpoint, seed=1000 * self._args.seed + at)
                self._proxies[each.name] = await stack.enter_async_context(proxy)
            processes = stack.enter_context(NodeProcesses())
            watching = asyncio.create_task(self._watch(processes))
            stack.callback(watching.cancel)
            await self._legs(processes)
            self.requests.update(node.asked)

    async def _legs(self, processes: NodeProcesses) -> None:
        timing, block_s = self.subnet.manifest.timing, self.subnet.block_s
        self._begin("start")
        await self._outage(lambda: self._start_all(processes))
        await self._until_ready()
        self.genesis = start_clock(self.subnet.paths.chain)
        self._begin("calm")
        await self._rounds(self._args.calm)
        self._begin("storm")
        storms = [asyncio.create_task(p.storm(self._args.every, 6 * block_s)) for _, p in sorted(self._proxies.items())]
        await asyncio.sleep(60 * self._args.minutes)
        for storm in storms:
            storm.cancel()
        await self._rounds(RECOVERY_ROUNDS - 1)
        for name, block in (("in training", 1), ("after commit", timing.commit + 1)):
            self._begin(name)
            await self._at(block)
            await self._outage()
            await self._rounds(RECOVERY_ROUNDS)
        self._begin("")
        self.legs.pop()

    async def _outage(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Nobody reaches the chain for so long. What happens meanwhile happens at its beginning."""
        seconds = self._args.outage
        for proxy in self._proxies.values():
            await proxy.fault("refuse", seconds)
        meanwhile()
        await asyncio.sleep(seconds + 1)

    def _begin(self, name: str) -> None:
        now, total = time.time(), Counter[str]()
        for proxy in self._proxies.values():
            total += proxy.counts
        if self.legs:
            leg = self.legs[-1]
            leg.ended, leg.faults = now, total - sum((other.faults for other in self.legs[:-1]), Counter())
            self._say(f"{leg.name}: {dict(leg.faults)}, {leg.crashes} crashes")
        self.legs.append(Leg(name, now))

    # --- processes -------------------------------------------------------------------------------

    def _start_all(self, processes: NodeProcesses) -> None:
        for spec in self.subnet.honest:
            self._start(processes, spec)

    def _start(self, processes: NodeProcesses, spec: NodeSpec) -> None:
        paths = self.subnet.paths
        command = [
            sys.executable, str(spec.script), "--preset", "localnet", "--netuid", str(self.subnet.manifest.netuid),
            "--run-dir", str(paths.root), "--wallet.name", WALLET, "--wallet.hotkey", spec.name,
            "--wallet.path", str(paths.wallets), "--axon.port", str(spec.port), "--threads", "1", "--device", "cpu",
            "--rounds", str(MANY_ROUNDS), "--subtensor.chain_endpoint", self._proxies[spec.name].endpoint,
        ]  # fmt: skip
        if spec.role is Role.MINER:
            command += ["--steps-per-round", str(spec.steps)]
        processes.start(spec.name, command, paths.node(spec.name) / "log.txt")

    async def _watch(self, processes: NodeProcesses) -> None:
        """Whoever ends has crashed; it is started again, as an operator's service manager would."""
        specs = {spec.name: spec for spec in self.subnet.honest}
        while True:
            for ended in processes.newly_ended():
                self.ended.append(f"{ended.name}: exit {ended.code}: {' / '.join(ended.log_tail[-2:])}")
                self.legs[-1].crashes += 1
                self._say(f"CRASH {self.ended[-1]}")
                restart = asyncio.create_task(asyncio.sleep(PAUSE_AFTER_CRASH_S))
                restart.add_done_callback(lambda _, spec=specs[ended.name]: self._start(processes, spec))
            for name, follower in self._followers.items():
                self._ready |= {name for event in follower.read() if event["event"] == "ready"}
            await asyncio.sleep(POLL_S)

    async def _until_ready(self) -> None:
        until = time.monotonic() + READY_S
        while waiting := {spec.name for spec in self.subnet.honest} - self._ready:
            if time.monotonic() > until:
                raise ConfigError(f"not ready within {READY_S:.0f} s: {', '.join(sorted(waiting))}")
            await asyncio.sleep(POLL_S)
        self._say(f"{len(self._ready)} nodes are ready")

    # --- time ------------------------------------------------------------------------------------

    def _block(self) -> float:
        return (time.time() - self.genesis) / self.subnet.block_s

    async def _rounds(self, count: int) -> None:
        """Until the round under way and `count` more have ended."""
        timing = self.subnet.manifest.timing
        index = (self._block() - timing.first_block) // timing.length
        await self._sleep_to(timing.first_block + (index + 1 + count) * timing.length)

    async def _at(self, block: int) -> None:
        """Until that block of the next round."""
        timing = self.subnet.manifest.timing
        index = (self._block() - timing.first_block) // timing.length
        await self._sleep_to(timing.first_block + (index + 1) * timing.length + block)

    async def _sleep_to(self, block: float) -> None:
        await asyncio.sleep(max(0.0, (block - self._block()) * self.subnet.block_s))


def stand_in() -> Any:
    """The chain node of the tests, which lie beside the benchmarks."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    try:
        return importlib.import_module("devnode")
    except ModuleNotFoundError as error:
        raise ConfigError(f"this benchmark needs tests/devnode of the repository: {error}") from None
