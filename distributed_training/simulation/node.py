"""One simulated node: the real parts over simulated adapters; it can be started, killed and started again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

from distributed_training.assembly import Adapters, honest_worker, live, make_parts
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.chain.memory import MemoryChain
from distributed_training.chain.patient import PatientChain
from distributed_training.chain.sole import SoleChain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.engine import Engine
from distributed_training.errors import ChainUnreachable
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics
from distributed_training.network.base import Traffic
from distributed_training.network.memory import MemoryTransport
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, StepRecord
from distributed_training.roles.mining.onward import Onward
from distributed_training.roles.mining.work import Worker, WorkResult, WorkTask
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.simulation.loop import Later, VirtualLoop
from distributed_training.simulation.records import NodeSink
from distributed_training.simulation.world import INCLUSION_S, World, role_of
from distributed_training.training.outer import Vector

CURRENT: ContextVar[str] = ContextVar("simulated node", default="-")  # whose code runs, for the log


class SimNode:
    """`name` lives as often as it is started; its folder, keys and links stay the same."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.role = world, name, role_of(name)
        self.key, self.identity, self.speed = world.key(name), world.identity(name), world.speed(name)
        self.traffic = Traffic()  # of the present life
        self.chain_lag_s = 0.0  # more than its line to the chain has always
        self.task: asyncio.Task[None] | None = None
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._transport: MemoryTransport | None = None

    @property
    def peer_key(self) -> bytes:
        return self.identity.public_key

    @property
    def running(self) -> bool:
        return self.task is not None and not self.task.done()

    def start(self) -> None:
        token = CURRENT.set(self.name)
        try:
            self.task = asyncio.create_task(self._live(), name=self.name)
        finally:
            CURRENT.reset(token)

    async def kill(self) -> None:
        """As kill -9 looks from outside: silent at once, every stream broken, the files as they are."""
        task, transport = self.task, self._transport
        self.task = self._transport = None
        if task is None:
            return
        if transport is not None:
            self.world.switch.unplug(transport)
        self.world.links.crash(self.peer_key)
        self.thaw()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it was killed: what it died of does not matter

    def freeze(self) -> None:
        """No byte and no chain call passes; streams stay open."""
        self._thawed.clear()
        self.world.links.freeze(self.peer_key)

    def thaw(self) -> None:
        self._thawed.set()
        self.world.links.thaw(self.peer_key)

    # --- a life -------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Ends when it is cancelled, or by an error; a node that has run its rounds goes on answering its peers."""
        w = self.world
        async with AsyncExitStack() as stack:
            chain = PatientChain(
                MemoryChain(w.ledger, self.key.hotkey, line=self._line, inclusion_s=INCLUSION_S),
                w.ledger.params.block_s,
            )
            me = await self._registered(chain)
            config = w.config(self.name, me.uid)
            metrics = Metrics([NodeSink(w.recorder, self.name)], role=self.role.name.lower(), uid=me.uid, threads=False)
            journal = Journal(config.node_dir / "journal.sqlite")
            stack.callback(journal.close)
            transport = self._transport = MemoryTransport(w.switch, self.peer_key)
            stack.push_async_callback(lambda: adapters.transport.stop())
            training = TrainingThread()
            stack.callback(training.close)
            adapters = Adapters(
                chain=await SoleChain.begin(chain, self.key, self.peer_key, w.manifest.timing.length),
                transport=transport,
                checkpoints=LocalCheckpoints(w.root / "checkpoints"),
                signer=self.key,
                verify=w.verify,
                sign_as_peer=self.identity.sign,
                verify_peer=w.verify_peer,
            )
            cheat = w.cheats.get(self.name)
            if cheat is not None:
                adapters = cheat.wrap(adapters)
            parts = await make_parts(config, w.manifest, adapters, journal, metrics, training)
            self.traffic = transport.traffic
            self._watch(parts.store)
            await adapters.transport.start()
            await live(self.role, config, parts, w.engine, me, lambda engine, run: self._worker(engine, run, parts))
            await asyncio.Event().wait()

    async def _registered(self, chain: PatientChain) -> Neuron:
        """Our neuron; a newcomer's registration is in the next block."""
        while True:
            me = (await chain.roster((await chain.head()).number)).by_hotkey(self.key.hotkey)
            if me is not None:
                return me
            await asyncio.sleep(self.world.ledger.params.block_s)

    async def _line(self) -> None:
        """The way to the chain."""
        await asyncio.sleep(self.speed.chain_latency_s + self.chain_lag_s)
        await self._thawed.wait()
        if self.world.outage():
            raise ChainUnreachable("the chain is out")

    def _worker(self, engine: Engine, manifest: RunManifest, parts: Parts) -> Worker:
        cheat = self.world.cheats.get(self.name)
        worker = honest_worker(engine, manifest) if cheat is None else cheat.worker(engine, manifest)
        setting = self.world.options.setting
        if setting is not None:
            return setting.timed(self.name, worker, parts)
        return TimedTrainer(worker, parts, self.speed.step_s)

    def _watch(self, store: RoundStore) -> None:
        """Tell the recorder when a slice is kept: the moment from which the node holds it."""
        keep = store.put_output

        def put_output(round_index: int, record_hash: bytes, output: StoredOutput) -> None:
            keep(round_index, record_hash, output)
            self.world.recorder.holds(round_index, self.name)

        store.put_output = put_output  # type: ignore[method-assign]


class TimedTrainer:
    """Real steps that take virtual time: as many as fit before the training phase ends, `step_s` each."""

    def __init__(self, trainer: Worker, parts: Parts, step_s: float) -> None:
        self._trainer, self._p, self._step_s = trainer, parts, step_s

    def work(self, task: WorkTask) -> WorkResult:
        loop = cast(VirtualLoop, asyncio.get_running_loop())
        if task.onward is not None:
            return cast(WorkResult, self._tick(task, task.onward, 0, None))
        done, left_s = 0, self._left_s(task)

        def on_step(record: StepRecord, seconds: float) -> None:
            nonlocal done
            done += 1
            task.on_step(record, self._step_s)

        def should_stop() -> bool:
            return task.should_stop() or (done + 1) * self._step_s > left_s

        result = self._trainer.work(replace(task, should_stop=should_stop, on_step=on_step))
        loop.spend(done * self._step_s)
        return replace(result, stall_s=None)  # of real time, which is not what passes here

    def _left_s(self, task: WorkTask) -> float:
        return self._p.clock.seconds_until(self._p.manifest.round(task.round).train_end_block)

    def _tick(self, task: WorkTask, onward: Onward, done: int, shift_at: int | None) -> WorkResult | Later:
        """`done` steps are over. What they give is computed when the last one is: then it is known where the state
        came in between."""
        over = done == task.max_steps or task.should_stop() or self._step_s > self._left_s(task)
        if not over:
            if shift_at is None and onward.state is not None:
                shift_at = done
            return Later(self._step_s, lambda: self._tick(task, onward, done + 1, shift_at))
        timed = replace(
            task,
            max_steps=done,
            should_stop=lambda: False,
            on_step=lambda record, seconds: task.on_step(record, self._step_s),
            onward=cast(Onward, _ShiftedAt(onward, shift_at)),
        )
        return replace(self._trainer.work(timed), stall_s=None)


class _ShiftedAt:
    """An Onward that is shifted before that step, or not while it is trained."""

    def __init__(self, onward: Onward, step: int | None) -> None:
        self._onward, self._step = onward, step

    def shift(self, step: int) -> Vector | None:
        return self._onward.shift(step) if step == self._step else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._onward, name)
