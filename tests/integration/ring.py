"""The all-reduce alone, on a virtual clock: real miners whose worker makes up its vector, validators that only vote,
the chain in memory, links that can be cut, slowed and frozen. Rounds take milliseconds, and nothing in them is a race.

    def test_something(tmp_path):
        async def story(ring):
            await ring.at(26)  # blocks after the start of round 0
            await ring.kill("miner-1")
            await ring.settled(0)
        ring = play(tmp_path, story, miners=4)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from subnet import EventList
from tiny_training import GPT2, manifest

from distributed_training.averaging import wants
from distributed_training.averaging.butterfly import Butterfly
from distributed_training.averaging.combine import SliceOutput
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair, verify
from distributed_training.chain.local.genesis import GenesisNeuron
from distributed_training.chain.local.store import ChainParams, block_hash
from distributed_training.chain.memory import Ledger, MemoryChain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import LocalFault, PeerFault
from distributed_training.journal import Journal
from distributed_training.metrics.base import Metrics
from distributed_training.network.base import Stream, StreamHandler
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.links import LinkProfile, Links, Nic
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules.assignment import assignment_beacon
from distributed_training.protocol.types import Commitment, Field, Role, StepRecord
from distributed_training.roles.follower import Follower
from distributed_training.roles.joining.bootstrap import Start, choose_start
from distributed_training.roles.joining.snapshots import serve_snapshots
from distributed_training.roles.miner import Miner
from distributed_training.roles.mining.work import WorkResult, WorkTask
from distributed_training.roles.parts import Parts, TrainingThread
from distributed_training.roles.report import RoundReport
from distributed_training.roles.rounds import Rounds
from distributed_training.roles.service import LogService, MinerService
from distributed_training.simulation import loop
from distributed_training.training.outer import RunState, initial_state, state_root

D = 64 * 6 + 20  # seven chunks, the last one short
LINK = LinkProfile(up_bytes_s=(1e6, 1e6), down_bytes_s=(1e6, 1e6), latency_s=(0.005, 0.005))
Story = Callable[["Ring"], Awaitable[None]]
MapLie = Callable[[list[bool]], list[bool]]


def ring_manifest(full_share: float | None = None, **average: Any) -> RunManifest:
    """Blocks of one second; reducers wait for their senders from s+28 to s+32."""
    base = manifest(GPT2)
    fields = {"chunk_coords": 64, "block_coords": 16, "min_counted": 1, "initial_tau": 50.0, **average}
    section = base.average.model_copy(update=fields)
    root = state_root(initial_state(np.zeros(D, np.float32), section), section.chunk_coords)
    return base.model_copy(
        update={
            "average": section,
            "audit": base.audit if full_share is None else base.audit.model_copy(update={"full_share": full_share}),
            "model": base.model.model_copy(update={"initial_root": root.hex()}),
            "timing": base.timing.model_copy(update={"reduce_margin": 4}),
            "keep": base.keep.model_copy(update={"snapshot_every": 1, "max_missing_rounds": 1}),
            "max_uids": 16,
        }
    )


class MadeUp:
    """A worker: two steps, and a vector that follows from uid and round."""

    def __init__(self, uid: int) -> None:
        self._uid = uid

    def work(self, task: WorkTask) -> WorkResult:
        rng = np.random.default_rng([self._uid, task.round])
        steps = tuple(StepRecord(i, (2.0, 2.0), 1.0, ((0.0, 1.0),)) for i in range(2))
        delta = (0.01 * rng.standard_normal(len(task.state.params))).astype(np.float32)
        return WorkResult(delta, steps, (digest(b"page"),), None)


class HeldChain(MemoryChain):
    """Its commitments can be held up: `may_commit`."""

    may_commit: asyncio.Event

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        await self.may_commit.wait()
        return await super().commit(fields, until)


class Withholding(MemoryTransport):
    """Answers nobody who asks for a slice."""

    def serve(self, method: str, handler: StreamHandler) -> None:
        async def refuse(stream: Stream) -> None:
            raise PeerFault("not to you")

        super().serve(method, refuse if method == wants.METHOD else handler)


class Voter:
    """What a validator does for the all-reduce: hold every slice, say so on chain, settle. `lie` changes its map."""

    def __init__(self, parts: Parts, follower: Follower, logs: LogService, lie: MapLie) -> None:
        self._p, self._follower, self._logs, self._lie = parts, follower, logs, lie

    async def run_round(self) -> None:
        p, start = self._p, await self._follower.prepare()
        report = RoundReport(p, start.round)
        plan = await self._follower.plan(start)
        await self._logs.open_round(plan)
        held = await p.butterfly.collector.gather(plan, plan.round.map_block - 2)
        if p.clock.head < plan.round.map_block:
            await self._say(plan, held)
        settled = await self._follower.settle(plan, held, lacking=lambda have, _: self._say(plan, have))
        report.settled(plan, settled.outcome, self._follower.root)

    async def _say(self, plan: RoundPlan, held: Mapping[int, SliceOutput]) -> None:
        p, index = self._p, plan.round.index
        bits = membership.encode_slice_map(self._lie([j in held for j in range(len(plan.slices))]))
        said = Commitment(
            Role.VALIDATOR, False, p.peer_key, p.manifest.tag, index, self._follower.root, index, bits
        )  # fmt: skip
        await p.chain.commit(encode_commitment(said))


@dataclass
class RingNode:
    name: str
    key: LocalKey
    identity: PeerIdentity
    uid: int
    events: list[dict[str, Any]] = field(default_factory=list)
    lie: MapLie = list
    withholds: bool = False  # a miner that gives its slices to nobody
    exact: bool = False  # a miner that was told to do exactly its steps
    troubles: int = 0  # of its own, when it looks for another state
    parts: Parts | None = None
    follower: Follower | None = None
    task: asyncio.Task[None] | None = None
    chain_open: asyncio.Event = field(default_factory=asyncio.Event)
    may_commit: asyncio.Event = field(default_factory=asyncio.Event)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def rounds(self) -> dict[int, dict[str, Any]]:
        return {e["round"]: e for e in self.events if e["event"] == "round"}

    async def line(self) -> None:
        await self.chain_open.wait()


class Ring:
    """Nodes by name: `miner-0`..., `validator-0`... Uids count validators first."""

    def __init__(
        self, root: Path, run: RunManifest, miners: int, stakes: Sequence[float], profile: LinkProfile
    ) -> None:
        self.root, self.run = root, run
        self.heals = False  # nodes that cannot go on join again, instead of ending with the reason
        names = [f"validator-{i}" for i in range(len(stakes))] + [f"miner-{i}" for i in range(miners)]
        self.nodes = {
            n: RingNode(n, LocalKey(derive_keypair(3, n)), PeerIdentity(digest(n.encode())), uid)
            for uid, n in enumerate(names)
        }
        self.links = Links(3, profile)
        self.switch = MemorySwitch(self.links)
        coldkey = derive_coldkey(3, "ring").ss58_address
        given = dict(zip(names, stakes, strict=False))
        params = ChainParams(
            3, 1.0, run.netuid, run.timing.length, 2, 1, 16, 64, 0, 1 << 20, 1,
            self.nodes[names[0]].key.hotkey, coldkey,
        )  # fmt: skip
        genesis = [GenesisNeuron(self.nodes[n].key.hotkey, coldkey, given.get(n, 0.0), n in given) for n in names]
        self.ledger = Ledger(params, genesis, finality=run.timing.finality)

    def miners(self) -> list[RingNode]:
        return [n for n in self.nodes.values() if n.name.startswith("miner")]

    # --- lives --------------------------------------------------------------------------------------

    async def start(self, name: str) -> None:
        """From its newest snapshot, or round 0."""
        node = self.nodes[name]
        node.stack, folder = AsyncExitStack(), self.root / name
        chain = HeldChain(self.ledger, node.key.hotkey, line=node.line)
        chain.may_commit = node.may_commit
        node.chain_open.set()
        node.may_commit.set()
        transport = (Withholding if node.withholds else MemoryTransport)(self.switch, node.identity)
        node.stack.push_async_callback(transport.stop)
        peers = PeerBook(transport, self.run.netuid, node.key.public_key, node.identity.sign, verify_peer)
        clock, store = BlockClock(chain, 1.0), RoundStore(folder)
        journal, training = Journal(folder / "journal.sqlite"), TrainingThread()
        node.stack.callback(journal.close)
        node.parts = Parts(
            manifest=self.run, params=await chain.params(), peer_key=node.identity.public_key, signer=node.key,
            verify=verify, chain=chain, clock=clock, peers=peers, store=store,
            butterfly=Butterfly(self.run, peers, store, chain, clock, node.key, verify), journal=journal,
            metrics=Metrics([EventList(node.events)], role="node", uid=node.uid, threads=False),
            checkpoints=LocalCheckpoints(self.root / "checkpoints"), training=training,
        )  # fmt: skip
        serve_snapshots(self.run, peers, store, chain, clock)
        found = store.newest_state()
        index, state = (0, self.initial()) if found is None else found
        node.follower = Follower(node.parts, index, state, trusted=True)
        await transport.start()
        node.task = asyncio.create_task(self._live(node), name=name)

    def initial(self) -> RunState:
        return initial_state(np.zeros(D, np.float32), self.run.average)

    async def announce(self, name: str) -> None:
        node = self.nodes[name]
        chain, role = MemoryChain(self.ledger, node.key.hotkey), Role.VALIDATOR if "val" in name else Role.MINER
        await chain.serve("10.0.0.1", 9000 + node.uid)
        said = Commitment(role, role is Role.MINER, node.identity.public_key, self.run.tag, None, None, None, None)
        await chain.commit(encode_commitment(said))

    async def _live(self, node: RingNode) -> None:
        p, follower = node.parts, node.follower
        assert p is not None and follower is not None
        if node.name.startswith("miner"):
            service = MinerService(self.run, p.peers, p.chain, p.clock, p.store)
            exact = (await p.chain.head()).number if node.exact else None
            worker: Any = Miner(
                p, follower, MadeUp(node.uid), service, uid=node.uid, steps_per_round=2, exact_from=exact
            )
        else:
            worker = Voter(p, follower, LogService(self.run, p.peers, p.clock, 1), node.lie)
        async with asyncio.TaskGroup() as tasks:
            clock = tasks.create_task(p.clock.run())

            async def find_start(stuck_at: int | None) -> Start:
                if node.troubles:
                    node.troubles -= 1
                    raise LocalFault("no room on the disk")
                return await choose_start(p, self.initial, stuck_at=stuck_at)

            rounds = Rounds(p, follower, find_start)
            try:
                while True:
                    await (rounds.one(worker) if self.heals else worker.run_round())
            finally:
                clock.cancel()

    async def kill(self, name: str) -> None:
        """As kill -9 looks from outside: every stream breaks, the files stay as they are."""
        node = self.nodes[name]
        if node.task is None or node.parts is None:
            return
        transport: Any = node.parts.peers.transport
        self.switch.unplug(transport)
        self.links.crash(node.identity.public_key)
        node.task.cancel()
        await asyncio.wait({node.task})
        await node.stack.aclose()
        node.task = None

    def freeze(self, name: str) -> None:
        """As SIGSTOP looks from outside: streams stay open, nothing moves."""
        self.nodes[name].chain_open.clear()
        self.links.freeze(self.nodes[name].identity.public_key)

    def thaw(self, name: str) -> None:
        self.nodes[name].chain_open.set()
        self.links.thaw(self.nodes[name].identity.public_key)

    def cut(self, *names: str) -> None:
        """Nothing passes between these and the rest any more; all of them still reach the chain."""
        self.links.partition([self.nodes[name].identity.public_key for name in names])

    def slow(self, name: str, bytes_per_s: float) -> None:
        nic = self.nic(name)
        nic.up_bytes_s = nic.down_bytes_s = bytes_per_s

    def nic(self, name: str) -> Nic:
        return self.links.nic(self.nodes[name].identity.public_key)

    # --- time ---------------------------------------------------------------------------------------

    async def at(self, offset: float, round_index: int = 0) -> None:
        """Until so many blocks (seconds) after the start of a round."""
        start = self.run.round(round_index).start_block + offset
        await asyncio.sleep(max(0.0, start - asyncio.get_running_loop().time()))

    async def settled(self, round_index: int, *names: str) -> None:
        """Until these nodes (all that live) have settled a round; a node that ends by itself raises."""
        for name in names or [n.name for n in self.nodes.values() if n.task is not None]:
            node = self.nodes[name]
            async with asyncio.timeout(4 * self.run.timing.length):
                while round_index not in node.rounds:
                    assert node.task is not None
                    if node.task.done():
                        node.task.result()
                    await asyncio.sleep(0.25)

    @property
    def order(self) -> list[str]:
        """Names of the reducers of round 0, by slice; a fact of the seed."""
        beacon = assignment_beacon(block_hash(3, self.run.round(0).roster_block), self.run.netuid, 0)
        names = {blake2b(beacon + n.key.public_key, digest_size=32).digest(): n.name for n in self.miners()}
        return [names[place] for place in sorted(names)]


def play(
    root: Path,
    story: Story,
    *,
    miners: int = 4,
    stakes: Sequence[float] = (1000.0,),
    lies: Mapping[str, MapLie] | None = None,
    profile: LinkProfile = LINK,
    absent: Sequence[str] = (),
    withholds: int | None = None,
    heals: bool = False,
    **average: Any,
) -> Ring:
    """Run a story from the chain's block 0 on; everybody is stopped at its end. withholds: the slice of round 0 whose
    reducer gives its slices to nobody."""

    async def main() -> Ring:
        ring = Ring(root, ring_manifest(**average), miners, stakes, profile)
        ring.heals = heals
        for name, lie in (lies or {}).items():
            ring.nodes[name].lie = lie
        if withholds is not None:
            ring.nodes[ring.order[withholds]].withholds = True
        for name in ring.nodes:
            await ring.announce(name)
            if name not in absent:
                await ring.start(name)
        ring.ledger.start_clock()
        try:
            await story(ring)
        finally:
            for name in ring.nodes:
                await ring.kill(name)
        return ring

    return loop.run(main())
