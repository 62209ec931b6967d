"""What a node answers to its peers beside the all-reduce: pushed logs, and chunks of committed bytes.

Authorisation comes before work: the peer key must belong to a registered hotkey, and the hotkey must be named by
the chain for exactly this (a candidate pushes its log; a voter of the round asks for the chunks the beacon drew).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distributed_training.averaging.butterfly import CONTROL_TIMEOUT_S, OwnWork
from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.sizes import most_pages
from distributed_training.averaging.store import RoundStore
from distributed_training.chain.base import Chain
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import ChainFault, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.newest import Newest
from distributed_training.network.peers import PeerBook
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.audit_plan import audit_beacon, voter_share
from distributed_training.protocol.rules.clock import bulk_timeout_s
from distributed_training.protocol.types import Neuron, WorkRecord
from distributed_training.protocol.wire import decode_signed, decode_work, record_hash
from distributed_training.roles import chunks
from distributed_training.roles.auditing.logs import KeptLogs, PushedLog

log = logging.getLogger(__name__)

LOG_METHOD = "log"
_ROUND = struct.Struct("<I")
_ACK = b"ok"
MAX_PROBES = 3  # a validator restarts, or its line breaks; more would be free amplification
AHEAD_BLOCKS = 2  # so far the asker's clock may be ahead of ours


@dataclass(frozen=True, slots=True)
class HeldWork:
    record: WorkRecord
    own: OwnWork
    log: bytes


class MinerService:
    """Gives our log to the voters of a round, and serves them the chunks of our bytes that the beacon draws."""

    def __init__(
        self, manifest: RunManifest, peers: PeerBook, chain: Chain, clock: BlockClock, store: RoundStore
    ) -> None:
        """store: where the chunks lie that were put away."""
        self._manifest, self._peers, self._chain, self._clock = manifest, peers, chain, clock
        self._store, self._chunk_bytes = store, dict[int, int]()
        self._held: dict[int, HeldWork] = {}
        self._voters: dict[int, dict[bytes, float]] = {}  # round -> public key -> share of the voters' stake
        self._beacons: dict[int, bytes] = {}
        self._layouts: dict[int, Layout] = {}
        self._answered: Counter[tuple[str, int, int]] = Counter()  # (method, round, uid of the validator)
        self._served: set[tuple[str, int, bytes]] = set()  # (method, round, public key of who took all it may ask for)
        peers.transport.serve(chunks.METHOD, self._on_chunks)

    def put_away(self) -> None:
        """The rounds we hold are over: their chunks are read from our disk from now on, if it took them."""
        for index, work in self._held.items():
            if not self._store.holds_own(index):
                continue
            contribution = replace(work.own.contribution, chunks=())
            self._held[index] = replace(work, own=replace(work.own, contribution=contribution))

    def hold(self, work: HeldWork) -> None:
        self._held[work.record.round] = work
        self._chunk_bytes[work.record.round] = len(work.own.contribution.chunks[0])
        for old in sorted(self._held)[: -chunks.KEPT_ROUNDS]:
            for kept in (self._held, self._voters, self._beacons, self._chunk_bytes, self._layouts):
                kept.pop(old, None)
        for key in [k for k in self._answered if k[1] not in self._held]:
            del self._answered[key]
        self._served = {served for served in self._served if served[1] in self._held}

    def held(self, round_index: int) -> HeldWork | None:
        return self._held.get(round_index)

    async def push_logs(self, plan: RoundPlan) -> None:
        """Our log to every voter of the round that takes it by s+X."""
        held = self._held.get(plan.round.index)
        if held is not None:
            keys = [n.commitment.peer_key for n in plan.voters if n.commitment is not None]
            await asyncio.gather(*(self._push_log(plan, held, key) for key in keys))

    async def _push_log(self, plan: RoundPlan, held: HeldWork, peer_key: bytes) -> None:
        what = f"round {plan.round.index}: our log to {peer_key.hex()[:12]}"
        tries = Ongoing(log, what, f"{what}: there", logging.DEBUG)
        while (left_s := self._clock.seconds_until(plan.round.output_block)) > 0:
            try:
                await push_log(self._peers, peer_key, plan.round.index, held.own.signed, held.log, left_s)
                log.debug("%s is there", what)
                return
            except (NetworkFault, PeerFault) as error:
                tries.begin(error)
                await asyncio.sleep(min(left_s, self._clock.block_s))

    async def attend(self, plan: RoundPlan) -> None:
        """From now on voters may ask about the round. Ends when its audit beacon is known: it is fetched as soon as it
        is final, so that nobody who asks waits for the chain. Cancelled or failed, it is fetched for who asks."""
        if plan.round.index not in self._held:
            return
        self.recall(plan.round.index, plan.voters, plan.layout)
        try:
            await self._beacon(plan.round.index)
        except ChainFault as error:
            log.debug("round %d: no audit beacon yet: %s", plan.round.index, error)

    def recall(self, round_index: int, voters: Sequence[Neuron], layout: Layout) -> None:
        """These may ask about a round that we hold."""
        self._layouts[round_index] = layout
        self._voters[round_index] = {n.public_key: voter_share(voters, n.public_key) for n in voters}

    async def _beacon(self, round_index: int) -> bytes:
        if round_index not in self._beacons:
            block = self._manifest.round(round_index).audit_block
            await self._clock.final(block)
            self._beacons[round_index] = audit_beacon(await self._chain.block_hash(block), round_index)
        return self._beacons[round_index]

    async def _on_chunks(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != chunks.REQUEST.size:
            raise WireError("request: malformed round and miner")
        index, asked = chunks.REQUEST.unpack(payload)
        held = self._held.get(index)
        if held is not None and asked != held.record.public_key:  # before it counts: who named our peer key as its own
            raise PeerFault("chunks of another miner")
        if held is None:
            raise PeerFault("chunks of a round we do not hold")
        beacon, share = await self.admit(chunks.METHOD, index, neuron)
        # Who asks gives up after the bulk time: a reader that lets every frame take its longest is not waited for.
        async with deadline(2 * bulk_timeout_s(self._manifest.timing, self._clock.block_s), "chunks"):
            whose = beacon, neuron.public_key, held.record, self._manifest, share
            drawn = chunks.drawn_chunks(*whose)
            await stream.write(held.own.contribution.show(drawn), CONTROL_TIMEOUT_S)
            for chunk in drawn:
                await stream.write(await self.chunk(held, chunk), CONTROL_TIMEOUT_S)
            said = await stream.read(len(_ACK), CONTROL_TIMEOUT_S)
            if said not in (_ACK, chunks.GLANCE, chunks.LOOK):
                raise WireError("chunks: no word that is known")
            if said != _ACK:
                shown = chunks.drawn_feedback(*whose)[: 1 if said == chunks.GLANCE else None]
                buffers = self._store.feedback, held.record, self._layouts[index]
                await chunks.give_feedback(stream, self._peers.uplink, buffers, shown, CONTROL_TIMEOUT_S)
                await chunks.read_enough(stream, CONTROL_TIMEOUT_S)
        self.gave(chunks.METHOD, index, neuron.public_key)

    async def admit(self, method: str, index: int, neuron: Neuron) -> tuple[bytes, float]:
        """The audit beacon of a round, and the asker's share of its voters' stake. Raises PeerFault for who is none of
        them, has asked too often, or asks before the beacon."""
        share, asks = self._voters.get(index, {}).get(neuron.public_key), (method, index, neuron.uid)
        if share is None:
            raise PeerFault(f"uid {neuron.uid} is no validator of round {index}")
        self._answered[asks] += 1
        if self._answered[asks] > MAX_PROBES:
            raise PeerFault(f"uid {neuron.uid} has had its chunks of round {index}")
        try:
            async with asyncio.timeout(AHEAD_BLOCKS * self._clock.block_s):
                return await self._beacon(index), share
        except TimeoutError:
            raise PeerFault("chunks asked for before the audit beacon") from None

    async def chunk(self, held: HeldWork, chunk: int) -> bytes:
        """Of work that we hold. Raises PeerFault, LocalFault for what our disk has lost."""
        if held.own.contribution.chunks:
            return held.own.contribution.chunks[chunk]
        size = self._chunk_bytes[held.record.round]  # of all chunks but the last
        data = await asyncio.to_thread(self._store.own_piece, held.record.round, chunk * size, size)
        if not data:
            raise PeerFault("chunks that our disk has lost")
        return data

    def gave(self, method: str, round_index: int, voter: bytes) -> None:
        """It took all that it may ask for by this method."""
        self._served.add((method, round_index, voter))

    def answered(self, round_index: int) -> bool:
        """Has every voter of the round, if we have work in it, had what it may ask for?"""
        held, beacon = self._held.get(round_index), self._beacons.get(round_index)
        voters = self._voters.get(round_index, {})
        if held is None or beacon is None:
            return not voters
        asked = ((chunks.asked(beacon, key, held.record, self._manifest, voters[key]), key) for key in voters)
        return all((method, round_index, key) in self._served for methods, key in asked for method in methods)


class LogService:
    """Takes the logs that candidates push: one of each at a time, as long as its record's claim makes it. One per
    validator."""

    def __init__(
        self, manifest: RunManifest, peers: PeerBook, clock: BlockClock, num_groups: int, folder: Path | None = None
    ) -> None:
        """folder: where they lie; None: in memory."""
        self._peers, self._clock, self._manifest = peers, clock, manifest
        self._step_bytes = 12 + 2 * manifest.data.batch_size + 2 * num_groups * manifest.audit.sketch_size
        self._bulk_s = bulk_timeout_s(manifest.timing, clock.block_s)
        self._plan: RoundPlan | None = None
        self._kept = None if folder is None else KeptLogs(folder)
        self._logs: dict[bytes, PushedLog] = {}
        self._coming = Newest()  # logs that are on their way
        self._opened = asyncio.Condition()
        peers.transport.serve(LOG_METHOD, self._on_log)

    async def open_round(self, plan: RoundPlan) -> None:
        """From now on logs of this round are taken, and no others.

        A round that is opened again keeps what its candidates sent, to a former process too: nobody sends a log twice.
        """
        index, found = plan.round.index, dict[bytes, PushedLog]()
        if self._kept is not None:
            self._kept.drop(index)
            found = await asyncio.to_thread(self._kept.load, index)
        async with self._opened:
            if self._plan is None or self._plan.round.index != index:
                self._logs = found
            works = {c.public_key: c.record_hash for c in plan.candidates}
            self._logs = {key: log for key, log in self._logs.items() if log.work_hash == works.get(key)}
            self._plan = plan
            self._opened.notify_all()

    def logs(self) -> dict[bytes, PushedLog]:
        """Public key -> log of the open round."""
        return dict(self._logs)

    async def _on_log(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, CONTROL_TIMEOUT_S)
        if len(payload) != _ROUND.size:
            raise WireError("request: malformed round")
        plan = await self._plan_of(*_ROUND.unpack(payload))
        candidate = plan.candidate(neuron.public_key)
        if candidate is None:
            raise PeerFault(f"uid {neuron.uid} is no candidate of round {plan.round.index}")
        signed = await stream.read(4096 + 4 * plan.layout.num_chunks, CONTROL_TIMEOUT_S)
        body = decode_signed(signed).body
        if record_hash(body) != candidate.record_hash:
            raise WireError("log: comes with another work record than the one on chain")
        if neuron.public_key in self._logs:
            raise PeerFault(f"uid {neuron.uid} has sent its log")
        most_bytes = self.most_bytes(decode_work(body))
        async with self._coming.only(neuron.public_key):
            data = await stream.read(most_bytes, self._bulk_s)
        pushed = PushedLog(signed, self._clock.head, data)
        if self._kept is not None:
            pushed = await asyncio.to_thread(self._kept.put, plan.round.index, neuron.public_key, pushed)
        if self._plan is not None and self._plan.round.index == plan.round.index:
            self._logs.setdefault(neuron.public_key, pushed)
        await stream.write(_ACK, CONTROL_TIMEOUT_S)

    def most_bytes(self, record: WorkRecord) -> int:
        """Of a log with so many steps. Raises WireError for more than there can be."""
        if record.steps > self._manifest.inner.max_steps:
            raise WireError(f"log: {record.steps} steps are claimed, at most {self._manifest.inner.max_steps} can be")
        return 8 + 32 * most_pages(self._manifest) + record.steps * self._step_bytes

    async def _plan_of(self, round_index: int) -> RoundPlan:
        """The open round; a miner may be a block ahead of us, so wait a little."""
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S), self._opened:
                await self._opened.wait_for(lambda: self._plan is not None and self._plan.round.index >= round_index)
        except TimeoutError:
            raise PeerFault(f"round {round_index} is not open here") from None
        if self._plan is None or self._plan.round.index != round_index:
            raise PeerFault(f"round {round_index} is over here")
        return self._plan


async def push_log(
    peers: PeerBook, peer_key: bytes, round_index: int, signed_record: bytes, log: bytes, timeout_s: float
) -> None:
    """Give a validator our record and log. Raises NetworkFault, DeadlineMissed."""
    opened = peers.open(peer_key, LOG_METHOD, _ROUND.pack(round_index), timeout_s)
    async with deadline(timeout_s, "push log"), closing(opened) as stream:
        await stream.write(signed_record, timeout_s)
        await stream.write(log, timeout_s)
        if await stream.read(len(_ACK), timeout_s) != _ACK:
            raise NetworkFault("the validator did not acknowledge the log")
