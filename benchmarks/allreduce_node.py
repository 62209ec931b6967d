"""One node of the all-reduce benchmark: a miner's rounds by the product's own code, over real libp2p, from an invented
vector to the next state. The chain is `allreduce_chain`'s; there is no model, and nobody asks for logs.

`allreduce_nursery` forks it. It prints a JSON line when it listens, and does what a line on its stdin says: "round",
"bare", "end".
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.allreduce_bare import Bare
from benchmarks.allreduce_chain import NodeChain, WaitingChain
from distributed_training.averaging.butterfly import Butterfly
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import LocalKey, derive_keypair, verify
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.journal import Journal
from distributed_training.memory import keep_freed
from distributed_training.metrics.base import Metrics
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import load_manifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.types import Carry, StepRecord
from distributed_training.roles.follower import Follower
from distributed_training.roles.miner import Miner
from distributed_training.roles.mining.work import WorkResult, WorkTask
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.roles.service import MinerService
from distributed_training.training.outer import RunState, Vector

BLOCK_S = 0.05  # only deadlines follow from it: blocks come when all are done
MOVED = np.float32(1e-3)  # by which a round moves a parameter, more or less


class Watch:
    """When a node was where in a round, and what it had used by then: (seconds, CPU of Python, CPU of p2pd, faults)."""

    def __init__(self) -> None:
        self.me, self.marks = psutil.Process(), dict[str, tuple[float, float, float, int]]()

    def mark(self, name: str) -> None:
        own, others = self.me.cpu_times(), [child.cpu_times() for child in self.me.children(recursive=True)]
        used = own.user + own.system, sum(c.user + c.system for c in others)
        self.marks[name] = (time.monotonic(), *used, resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    def memory(self, field: str) -> float:
        """MB of this process and of its daemon."""
        found = 0
        for process in (self.me, *self.me.children(recursive=True)):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith(field))
        return found * 1024 / 1e6


class Heard(logging.Handler):
    """What the averaging says in its log of one transfer, and when: by uid of the other side."""

    SENT, HERE = re.compile(r"sent to uid (\d+)$"), re.compile(r"^slice (\d+) is here")

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.sent_at, self.here_at = dict[str, float](), dict[str, float]()
        self.lines = deque[str](maxlen=200)  # the newest, for who looks why a node hangs
        self.reducers: dict[int, str] = {}  # slice -> uid

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.lines.append(f"{time.monotonic():.3f} {text}")
        if found := self.SENT.search(text):
            self.sent_at[found[1]] = time.monotonic()
        elif found := self.HERE.search(text):
            self.here_at[self.reducers.get(int(found[1]), found[1])] = time.monotonic()


class MadeUp:
    """A worker whose vector is drawn; it ends when everybody's is there."""

    def __init__(self, uid: int, watch: Watch, meet: Callable[[int], None]) -> None:
        self._uid, self._watch, self._meet = uid, watch, meet

    def work(self, task: WorkTask) -> WorkResult:
        delta = drawn(len(task.state.params), (self._uid, task.round))
        steps = (StepRecord(0, (2.0,), 1.0, ((0.0, 1.0),)),)
        self._meet(task.round)
        self._watch.mark("trained")
        return WorkResult(delta, steps, (digest(b"page"),), None)


class QuietService(MinerService):
    """Nobody wants a log."""

    async def push_logs(self, plan: object) -> None:
        pass


def drawn(size: int, seed: tuple[int, ...]) -> Vector:
    rng, made = np.random.default_rng(seed), np.empty(size, np.float32)
    rng.standard_normal(dtype=np.float32, out=made)
    return np.multiply(made, MOVED, out=made)


class Node:
    def __init__(self, plan: dict[str, Any], name: str) -> None:
        self.plan, self.name, self.watch, self.heard = plan, name, Watch(), Heard()
        log = logging.getLogger("distributed_training.averaging")
        log.setLevel(logging.DEBUG)
        log.addHandler(self.heard)
        log.propagate = False
        self.me = next(node for node in plan["nodes"] if node["name"] == name)
        self.folder, self.manifest = Path(plan["folder"]) / name, load_manifest(Path(plan["manifest"]))
        self.chain = NodeChain(plan, name, BLOCK_S)
        self.chain.wrote = self._wrote
        identity = PeerIdentity.load_or_create(self.folder / "identity.key")
        where = self.me["listen"], self.me["listen_port"]
        self.transport = Libp2pTransport(
            self.folder / "identity.key", *where, announce=(self.me["ip"], self.me["port"]), hints=False
        )
        self.key = LocalKey(derive_keypair(plan["seed"], name))
        self.book = PeerBook(self.transport, plan["netuid"], self.key.public_key, identity.sign, verify_peer)
        self.training, self.journal = TrainingThread(), Journal(self.folder / "journal.sqlite")

    async def start(self) -> None:
        clock, store = BlockClock(WaitingChain(self.chain), BLOCK_S), RoundStore(self.folder)  # type: ignore[arg-type]
        self.butterfly = Butterfly(self.manifest, self.book, store, self.chain, clock, self.key, verify)
        self.parts = Parts(
            manifest=self.manifest, params=await self.chain.params(), peer_key=self.transport.peer_key,
            signer=self.key, verify=verify, chain=self.chain, clock=clock, peers=self.book, store=store,
            butterfly=self.butterfly, journal=self.journal,
            metrics=Metrics([], role="miner", uid=self.me["uid"], threads=False),
            checkpoints=LocalCheckpoints(self.folder / "checkpoints"), training=self.training,
        )  # fmt: skip
        self._say_when_gathered()
        self.bare = Bare(self.plan, self.me, self.transport, self.chain)
        await self.transport.start()
        self.clock_task = asyncio.create_task(clock.run(), name="clock")
        size, self.base_mb = self.plan["params"], self.watch.memory("VmRSS")
        state = RunState(drawn(size, (0,)), np.zeros(size, np.float32), 0, Carry(self.manifest.average.initial_tau, ()))
        self.follower = Follower(self.parts, 0, state, trusted=True)
        loop = asyncio.get_running_loop()

        def meet(index: int) -> None:
            asyncio.run_coroutine_threadsafe(self.chain.meet("trained", index), loop).result()

        if self.me["kind"] == "miner":
            service = QuietService(self.manifest, self.book, self.chain, clock, store)
            worker = MadeUp(self.me["uid"], self.watch, meet)
            self.miner = Miner(self.parts, self.follower, worker, service, uid=self.me["uid"], steps_per_round=1)
        await asyncio.gather(*(self._greet(n) for n in self.plan["nodes"] if n["port"] and n["uid"] > self.me["uid"]))

    def _say_when_gathered(self) -> None:
        """The chain goes to s+X when all have contributed, and to s+Y when everybody has all slices."""
        collector = self.butterfly.collector
        gather = collector.gather

        async def gathered(plan: Any, *args: Any, **options: Any) -> Any:
            uids = {candidate.public_key: str(candidate.uid) for candidate in plan.candidates}
            self.heard.reducers = {spec.index: uids[spec.reducer] for spec in plan.slices}
            found = await gather(plan, *args, **options)
            self.watch.mark("gathered")
            await self.chain.meet("gathered", plan.round.index, self.follower.root)
            self.watch.mark("known")
            return found

        collector.gather = gathered  # type: ignore[method-assign]
        contribute = self.butterfly.contribute

        async def contributed(plan: Any, *args: Any) -> Any:
            said = await contribute(plan, *args)
            await self.chain.meet("contributed", plan.round.index)
            return said

        self.butterfly.contribute = contributed  # type: ignore[method-assign]

    def _wrote(self, fields: Any) -> None:
        self.watch.mark("committed" if len(fields) == 2 else "reduced")

    async def _greet(self, node: dict[str, Any]) -> None:
        """Dialled before anything is timed, as peers that keep in touch are."""
        await asyncio.sleep(0)
        self.book.update(await self.chain.roster((await self.chain.head()).number))
        for _ in range(100):
            try:
                stream = await self.transport.open(bytes.fromhex(node["peer_key"]), "hello", 5.0)
                await stream.close()
                return
            except Exception:  # it is not there yet
                await asyncio.sleep(0.2)

    async def round(self) -> dict[str, Any]:
        for former in (self.watch.marks, self.heard.sent_at, self.heard.here_at):
            former.clear()
        index = self.follower.index
        if self.me["kind"] == "miner":
            await self.miner.run_round()
        else:
            await self._observe()
        self.watch.mark("settled")
        await self.chain.meet("settled", index)
        traffic = self.transport.traffic
        return {
            "root": self.follower.root.hex(),
            "applied": self.follower.state.applied,
            "marks": self.watch.marks,
            "sent_at": self.heard.sent_at,
            "here_at": self.heard.here_at,
            "sent": traffic.sent,
            "received": traffic.received,
            "peak_mb": self.watch.memory("VmHWM"),
        }

    async def _observe(self) -> None:
        """What a validator or an owner takes of the all-reduce: every slice."""
        start = await self.follower.prepare()
        plan = await self.follower.plan(start)
        self.watch.mark("trained")
        held = await self.butterfly.collector.gather(plan, plan.round.map_block)
        await self.follower.settle(plan, held)

    async def stop(self) -> None:
        self.clock_task.cancel()
        await self.transport.stop()
        self.training.close()
        self.journal.close()


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def dump_tasks(lines: Iterable[str]) -> None:
    """What everything waits for and what was said, into the log: on SIGUSR1."""
    for task in asyncio.all_tasks():
        waits, at = list[str](), task.get_coro()
        while at is not None:
            frame = getattr(at, "cr_frame", None)
            waits += [f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"] if frame else []
            at = getattr(at, "cr_await", None)
        print(task.get_name(), *waits, sep=" > ", file=sys.stderr, flush=True)
    print(*lines, sep="\n", file=sys.stderr, flush=True)


async def main(plan_file: str, name: str) -> None:
    keep_freed()
    node = Node(json.loads(Path(plan_file).read_text()), name)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, dump_tasks, node.heard.lines)
    await node.start()
    say({"ready": True, "base_mb": node.base_mb})
    try:
        while (line := (await asyncio.to_thread(sys.stdin.readline)).strip()) not in ("", "end"):
            say(await (node.bare.exchange() if line == "bare" else node.round()))
    finally:
        await node.stop()
