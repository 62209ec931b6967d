"""Run one simulation: start the nodes, let the incidents happen, watch every round, say what came of it."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import uplink_bytes
from distributed_training.chain.forks import Fork
from distributed_training.protocol.rules.clock import over, round_at
from distributed_training.protocol.types import Role
from distributed_training.simulation import observer
from distributed_training.simulation.faults import Incident, incidents
from distributed_training.simulation.loop import Deadlock, collecting_seldom, run
from distributed_training.simulation.node import SimNode
from distributed_training.simulation.observer import RoundRow, Violation
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.records import FailedAudit
from distributed_training.simulation.world import World, make_world
from distributed_training.training.flat import num_parameters

LAG_S = 2.5  # that every word from the chain takes who lags
FIRST_START_S = 0.2  # nodes of the genesis start within this time, in uid order
Progress = Callable[[RoundRow], None]


@dataclass(frozen=True, slots=True)
class SimResult:
    options: SimOptions
    rows: tuple[RoundRow, ...]
    violations: tuple[Violation, ...]
    incidents: tuple[Incident, ...]
    root: str  # of the state after the last round, hex; "": nobody settled it
    digest: str  # over every event of every node: equal for equal options
    events: int
    virtual_s: float
    real_s: float
    wire_bytes: int  # of one encoded vector
    pay: tuple[Mapping[int, float], ...]  # at the end of each round: uid -> incentive on chain
    trained: Mapping[int, Mapping[int, float]]  # round -> uid -> steps that were really computed
    failed: tuple[FailedAudit, ...]

    @property
    def lost_share(self) -> float | None:
        """Tokens that were trained and are in no state, as a share. None: nothing was measured."""
        known = [r for r in self.rows if r.averaged_tokens is not None]
        trained = sum(r.trained_tokens for r in self.rows)
        return None if not known or not trained else 1.0 - sum(r.averaged_tokens or 0.0 for r in known) / trained


class Swarm:
    """The nodes of a world and what has been seen of them."""

    def __init__(self, world: World, planned: tuple[Incident, ...]) -> None:
        self.world, self.planned = world, planned
        self.nodes: dict[str, SimNode] = {}
        self.since: dict[str, float] = {}
        self.rows: list[RoundRow] = []
        self.violations: list[Violation] = []
        self.pay: list[Mapping[int, float]] = []
        setting = world.options.setting
        self._bound_s = observer.BOUND_S + (0.0 if setting is None else setting.settle_s)
        self._outages = 0
        self._moved: dict[str, tuple[int, int]] = {}
        world.outage = lambda: self._outages > 0

    async def run(self, progress: Progress) -> None:
        w, loop = self.world, asyncio.get_running_loop()
        w.recorder.now = loop.time
        w.ledger.start_clock()
        names = w.options.genesis_names()
        for name in names:
            self._start(name, since_s=0.0)
            await asyncio.sleep(FIRST_START_S / len(names))
        script = [asyncio.create_task(self._happen(i), name=f"incident {i.kind}") for i in self.planned]
        watched = w.options.rounds if w.options.watched is None else w.options.watched
        for index in range(watched):
            await self._until(w.block_time(over(w.manifest.timing, index)) + self._bound_s)
            self._watch(index)
            gc.collect()
            progress(self.rows[-1])
        await asyncio.gather(*script)
        if watched == w.options.rounds:
            await self._last_look()
        self._find_the_dead(watched - 1)
        self.violations += observer.contradictions(w.recorder)
        for node in self.nodes.values():
            await node.kill()
        left = [t.get_name() for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        if left:
            self.violations.append(Violation(w.options.rounds - 1, tuple(sorted(left)), "tasks outlived their nodes"))

    def _start(self, name: str, since_s: float) -> None:
        node = self.nodes.get(name) or SimNode(self.world, name)
        self.nodes[name] = node
        self.since.setdefault(name, since_s)
        node.start()

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))

    # --- incidents ------------------------------------------------------------------------------------

    async def _happen(self, incident: Incident) -> None:
        await self._until(incident.begin_s)
        for name in incident.nodes or ("chain",):
            self.world.recorder.note(name, "incident", kind=incident.kind, until=incident.end_s)
        await self._begin(incident)
        await self._until(incident.end_s)
        self._end(incident)

    async def _begin(self, incident: Incident) -> None:
        w, nodes = self.world, [self.nodes[name] for name in incident.nodes if name in self.nodes]
        if incident.kind == "kill":
            await asyncio.gather(*(node.kill() for node in nodes))
        elif incident.kind == "freeze":
            for node in nodes:
                node.freeze()
        elif incident.kind == "cut":
            w.links.partition([node.peer_key for node in nodes])
        elif incident.kind == "outage":
            self._outages += 1
        elif incident.kind == "fork":
            self._fork(incident, nodes)
        elif incident.kind == "unfinal":
            w.ledger.stuck_at = w.ledger.final()
        elif incident.kind == "lag":
            for node in nodes:
                node.chain_lag_s = LAG_S
        elif incident.kind == "add":
            for name in incident.nodes:
                w.register(name)
                self._start(name, since_s=incident.begin_s)

    def _end(self, incident: Incident) -> None:
        nodes = [self.nodes[name] for name in incident.nodes if name in self.nodes]
        if incident.kind == "kill":
            for node in nodes:
                node.start()
        elif incident.kind == "freeze":
            for node in nodes:
                node.thaw()
        elif incident.kind == "cut":
            self.world.links.heal()
        elif incident.kind == "outage":
            self._outages -= 1
        elif incident.kind == "unfinal":
            self.world.ledger.stuck_at = None
        elif incident.kind == "lag":
            for node in nodes:
                node.chain_lag_s = 0.0

    def _fork(self, incident: Incident, nodes: Sequence[SimNode]) -> None:
        """The block that begins now has no commitment of this round for every second miner, as `nodes` see it."""
        ledger = self.world.ledger
        first, hotkeys = ledger.head(), [node.key.hotkey for node in nodes]
        miners = [node.key.hotkey for node in self.nodes.values() if node.role is Role.MINER]
        since = self.world.manifest.round(round_at(self.world.manifest.timing, first) or 0).start_block
        until = first + ledger.finality
        ledger.forks.append(Fork(first, until, frozenset(hotkeys), frozenset(miners[::2]), since))

    # --- what the observer sees -------------------------------------------------------------------------

    def _watch(self, index: int) -> None:
        w = self.world
        round_, block_s = w.manifest.round(index), w.ledger.params.block_s
        running = [name for name, node in self.nodes.items() if node.running]
        self.rows.append(observer.round_row(w.recorder, round_, block_s, self._traffic()))
        self.violations += observer.check_round(
            w.recorder,
            round_,
            running,
            self.since,
            observer.Troubles(self.planned),
            block_s,
            w.manifest.timing,
            self._bound_s,
        )
        roster = w.ledger.roster(w.ledger.head())
        self.pay.append({n.uid: n.incentive for n in roster.neurons})
        self._find_the_dead(index)

    async def _last_look(self) -> None:
        """`_watch` excuses who had trouble, and looks at a round once: in the end there is no excuse for anybody."""
        w, over_s = self.world, max((i.end_s for i in self.planned), default=0.0)
        round_s = w.manifest.timing.length * w.ledger.params.block_s
        await self._until(over_s + observer.RECOVERY_ROUNDS * round_s + self._bound_s)
        running = [name for name, node in self.nodes.items() if node.running]
        self.violations += observer.never_back(w.recorder, w.options.rounds - 1, running)
        for index in range(w.options.rounds):
            found = observer.disagreements(index, w.recorder.settled.get(index, {}))
            self.violations += [violation for violation in found if violation not in self.violations]

    def _find_the_dead(self, index: int) -> None:
        """A node ends when it is killed; whatever else ends it is a violation, once."""
        for name, node in self.nodes.items():
            if node.task is not None and node.task.done():
                error = asyncio.CancelledError() if node.task.cancelled() else node.task.exception()
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                self.violations.append(Violation(index, (name,), f"ended by itself: {type(error).__name__}: {error}"))
                node.task = None

    def _traffic(self) -> tuple[float, float]:
        """(frames, bytes) sent by a miner since the last call, mean over all."""
        frames, sent = [], []
        for name, node in self.nodes.items():
            if node.role is not Role.MINER:
                continue
            former = self._moved.get(name, (0, 0))
            now = (node.traffic.frames_sent, node.traffic.sent)
            reborn = now[0] < former[0]
            frames.append(now[0] - (0 if reborn else former[0]))
            sent.append(now[1] - (0 if reborn else former[1]))
            self._moved[name] = now
        return sum(frames) / len(frames), sum(sent) / len(sent)


def simulate(
    options: SimOptions,
    progress: Progress = lambda row: None,
    *,
    root: Path | None = None,
    events: TextIO | None = None,
    planned: Sequence[Incident] | None = None,
) -> SimResult:
    """One simulation from block 0. Its files lie in memory, or below `root`, where they stay. Raises ConfigError.

    planned: what goes wrong, instead of what is drawn.
    """
    torch.set_num_threads(1)
    began, shm = time.perf_counter(), Path("/dev/shm")
    folder = root or Path(tempfile.mkdtemp(prefix="dt-simulation-", dir=shm if shm.is_dir() else None))
    try:
        world = make_world(options, folder, events)
        drawn = incidents(options, world.manifest, world.ledger.params.block_s)
        happening = drawn if planned is None else tuple(planned)
        swarm, loop_end = Swarm(world, happening), 0.0

        async def main() -> float:
            await swarm.run(progress)
            return asyncio.get_running_loop().time()

        try:
            with collecting_seldom():
                loop_end = run(main())
        except Deadlock as dead:
            swarm.violations.append(Violation(len(swarm.rows), (), f"deadlock {dead}"))
        return SimResult(
            options=options,
            rows=tuple(swarm.rows),
            violations=tuple(swarm.violations),
            incidents=happening,
            root=world.recorder.last_root(),
            digest=world.recorder.digest(),
            events=world.recorder.events,
            virtual_s=loop_end,
            real_s=time.perf_counter() - began,
            wire_bytes=_wire_bytes(world),
            pay=tuple(swarm.pay),
            trained=_computed(world),
            failed=tuple(world.recorder.failed),
        )
    finally:
        if root is None:
            shutil.rmtree(folder, ignore_errors=True)


def _computed(world: World) -> dict[int, dict[int, float]]:
    """Of who cheats: what its bench counted; of all others: what they trained."""
    uids = {name: uid for uid, name in enumerate(world.options.genesis_names())}
    found: dict[int, dict[int, float]] = {}
    for index, by_name in world.recorder.trained.items():
        honest = {uids[n]: tokens / world.manifest.tokens_per_step for n, tokens in by_name.items() if n in uids}
        cheats = {uids[n]: cheat.bench.cost[index] for n, cheat in world.cheats.items() if cheat.bench is not None}
        found[index] = honest | cheats
    return found


def _wire_bytes(world: World) -> int:
    return uplink_bytes(world.manifest, layout_of(world.manifest, num_parameters(world.engine.model)))
