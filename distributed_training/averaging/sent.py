"""What senders sent us as reducers, kept for the audits of the round: a sender that serves its own vector to nobody is
still judged by it, because every reducer holds its chunks under the wire root that it committed.

    voter                                     reducer (or who stood in for it)
    (round, slice, sender, onward?)   ->
                                      <-      the slice's digests, with what leads to the sender's wire root; or one
                                              empty frame: nothing is held, or given
    a bit per chunk of the slice      ->
                                      <-      each of those chunks, empty where it never came

Given to voters of the round, after its audit beacon, and to each a few times: everything where that gives one of them a
full audit of the sender, else the few chunks by which this voter's look sees where the vector points. Where rounds
overlap, also after the audit beacon of the next round (`onward`): its replays begin at the whole vector. A sender's
chunks of its own slice are with nobody else.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from distributed_training.averaging.disk import SENT_ROUNDS
from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.wants import Patience
from distributed_training.chain.base import Chain
from distributed_training.chain.clock import BlockClock
from distributed_training.errors import LocalFault, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, read_shown, shown_bytes
from distributed_training.protocol.rules.audit_plan import SAMPLE, audit_beacon, audit_depth, probe_chunks, voter_share
from distributed_training.protocol.rules.membership import backup_of
from distributed_training.protocol.types import Candidate, Round, SliceSpec, WorkRecord

log = logging.getLogger(__name__)

METHOD = "sent"
MAX_ASKS = 3  # of one voter for one sender's chunks of one slice
AHEAD_BLOCKS = 2  # so far the asker's clock may be ahead of ours
_REQUEST = struct.Struct("<IH32s?")  # the last: for the audit of the round after
_ABSENT = b""
_AT_ONCE = 16  # reducers asked at a time, for all senders together: who refuses a probe opens no streams of ours


@dataclass(frozen=True, slots=True)
class _Held:
    """One slice as it was received; its bytes lie in the store."""

    plan: RoundPlan
    spec: SliceSpec
    shown: Mapping[bytes, bytes]  # sender -> the digests of its chunks, with what leads to its root, as they came
    steps: Mapping[bytes, int]  # sender -> that its record claims
    at: Mapping[tuple[bytes, int], int]  # (sender, chunk) -> where it begins in the file


class Sent:
    """Both ends. One per node."""

    def __init__(
        self,
        manifest: RunManifest,
        peers: PeerBook,
        store: RoundStore,
        chain: Chain,
        clock: BlockClock,
        patience: Patience,
    ) -> None:
        self._manifest, self._peers, self._store = manifest, peers, store
        self._chain, self._clock, self._patience = chain, clock, patience
        self._held: dict[tuple[int, int], _Held] = {}  # (round, slice)
        self._beacons: dict[int, bytes] = {}
        self._asks: Counter[tuple[int, int, bytes, bytes, bool]] = Counter()  # round, slice, sender, who asks, onward
        self._turns = asyncio.Semaphore(_AT_ONCE)
        peers.transport.serve(METHOD, self._on_sent)

    # --- reducer ------------------------------------------------------------------------------------

    async def keep(self, inbox: Inbox) -> None:
        """Put what came for a slice where voters may ask for it; nothing came: nothing to keep."""
        plan, spec, parts, at, end = inbox.plan, inbox.spec, list[bytes](), dict[tuple[bytes, int], int](), 0
        for key in sorted(inbox.shown):
            for chunk, sent in sorted(inbox.chunks.get(key, {}).items()):
                parts.append(sent.data)
                at[key, chunk], end = end, end + len(sent.data)
        if not parts:
            return
        steps = {key: inbox.works[key].steps for key in inbox.shown}
        try:
            await asyncio.to_thread(self._store.put_sent, plan.round.index, spec.index, parts)
        except LocalFault as fault:
            log.info("slice %d: nothing of what came is kept for audits: %s", spec.index, fault)
            return
        self._held[plan.round.index, spec.index] = _Held(plan, spec, dict(inbox.shown), steps, at)
        overlap = int(self._manifest.timing.overlap)  # the round before is audited still, and begins at one before that
        self._forget(plan.round.index - SENT_ROUNDS - overlap)

    def _forget(self, last: int) -> None:
        """Rounds up to `last` are audited no more."""
        self._held = {key: held for key, held in self._held.items() if key[0] > last}
        self._beacons = {index: beacon for index, beacon in self._beacons.items() if index > last}
        self._asks = Counter({key: count for key, count in self._asks.items() if key[0] > last})

    async def _on_sent(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, self._patience.control_s)
        if len(payload) != _REQUEST.size:
            raise WireError("sent: malformed request")
        index, slice_index, sender, onward = _REQUEST.unpack(payload)
        held = self._held.get((index, slice_index))
        if held is None or sender not in held.shown:
            await stream.write(_ABSENT, self._patience.stall_s)
            return
        if all(v.public_key != neuron.public_key for v in held.plan.voters):
            raise PeerFault(f"uid {neuron.uid} is no validator of round {index}")
        if onward and not self._manifest.timing.overlap:
            raise PeerFault("no round of this run goes on from the round before")
        self._asks[index, slice_index, sender, neuron.public_key, onward] += 1
        if self._asks[index, slice_index, sender, neuron.public_key, onward] > MAX_ASKS:
            raise PeerFault(f"uid {neuron.uid} has had these chunks of round {index}")
        given = range(held.spec.first_chunk, held.spec.last_chunk)
        beacon = await self._beacon(self._manifest.round(index + int(onward)))
        if not onward and not _is_full(held.plan, beacon, sender, held.steps[sender], self._manifest):
            count, drawn = held.plan.layout.num_chunks, self._manifest.audit.probe_chunks
            sample = probe_chunks(beacon, neuron.public_key, sender, count, drawn)[:SAMPLE]
            given = [c for c in sample if c in given]
        if not given:
            raise PeerFault(f"nothing of this sender is looked at here in round {index}")
        async with deadline(2 * self._patience.bulk_s, "sent"):
            await self._serve(stream, held, sender, given)

    async def _serve(self, stream: Stream, held: _Held, sender: bytes, given: Collection[int]) -> None:
        spec, stall_s = held.spec, self._patience.stall_s
        await stream.write(held.shown[sender], stall_s)
        size = spec.last_chunk - spec.first_chunk
        wants = await stream.read((size + 7) // 8, self._patience.bulk_s)
        bits = int.from_bytes(wants, "little")
        if bits >> size:
            raise WireError("sent: malformed wants")
        for chunk in range(spec.first_chunk, spec.last_chunk):
            if not bits >> (chunk - spec.first_chunk) & 1:
                continue
            where, data = held.at.get((sender, chunk)) if chunk in given else None, _ABSENT
            if where is not None:
                length = held.plan.uplink.chunk_bytes(held.plan.layout, chunk)
                place = held.plan.round.index, spec.index, where, length
                data = await asyncio.to_thread(self._store.sent_piece, *place)
            await self._peers.uplink.show(stream, data, stall_s)

    async def _beacon(self, round_: Round) -> bytes:
        """Raises PeerFault for who asks too early."""
        index = round_.index
        if index not in self._beacons:
            try:
                async with asyncio.timeout(AHEAD_BLOCKS * self._clock.block_s):
                    await self._clock.final(round_.audit_block)
            except TimeoutError:
                raise PeerFault("chunks asked for before the audit beacon") from None
            self._beacons[index] = audit_beacon(await self._chain.block_hash(round_.audit_block), index)
        return self._beacons[index]

    # --- voter --------------------------------------------------------------------------------------

    async def fetch(
        self, plan: RoundPlan, sender: Candidate, work: WorkRecord, wanted: Collection[int], *, onward: bool = False
    ) -> dict[int, bytes]:
        """Chunk -> what the sender committed, from the reducers and who stands in for them. What none gives is absent.

        work: the sender's checked record. onward: for the audit of the round after. Each slice takes at most twice the
        bulk time once it is its turn; no peer's fault is raised.
        """
        found = dict[int, bytes]()

        async def slice_of(spec: SliceSpec) -> None:
            backup = backup_of(plan.slices, spec.index)
            for reducer in (spec.reducer, *([] if backup is None else [backup.reducer])):
                rest = [c for c in range(spec.first_chunk, spec.last_chunk) if c in wanted and c not in found]
                holder = plan.candidate(reducer)
                if not rest or holder is None or reducer == sender.public_key:
                    continue
                async with self._turns:
                    await self._ask(plan, spec, holder, sender, work, rest, found, onward)

        async with asyncio.TaskGroup() as tasks:
            for spec in plan.slices:
                tasks.create_task(slice_of(spec), name=f"sent {spec.index}")
        return found

    async def _ask(
        self,
        plan: RoundPlan,
        spec: SliceSpec,
        holder: Candidate,
        sender: Candidate,
        work: WorkRecord,
        rest: Collection[int],
        found: dict[int, bytes],
        onward: bool,
    ) -> None:
        stall_s = self._patience.stall_s
        header = _REQUEST.pack(plan.round.index, spec.index, sender.public_key, onward)
        try:
            async with (
                deadline(self._patience.bulk_s, f"slice {spec.index} of uid {sender.uid}"),
                closing(self._peers.open(holder.peer_key, METHOD, header, stall_s)) as stream,
            ):
                count, places = plan.layout.num_chunks, range(spec.first_chunk, spec.last_chunk)
                said = await stream.read(shown_bytes(count, places), stall_s)
                if said == _ABSENT:
                    raise PeerFault("holds nothing of it")
                digests = read_shown(said, count, places, work.wire_root)
                bits = sum(1 << (c - spec.first_chunk) for c in rest)
                await stream.write(bits.to_bytes((spec.last_chunk - spec.first_chunk + 7) // 8, "little"), stall_s)
                for chunk in rest:
                    data = await stream.read(plan.uplink.chunk_bytes(plan.layout, chunk), stall_s)
                    if data != _ABSENT and digest(data) != digests[chunk]:
                        raise WireError(f"sent: chunk {chunk} is not the committed one")
                    if data != _ABSENT:
                        found[chunk] = data
        except (NetworkFault, PeerFault) as error:
            log.debug("chunks of uid %d from uid %d: %s", sender.uid, holder.uid, error)


def _is_full(plan: RoundPlan, beacon: bytes, sender: bytes, steps: int, manifest: RunManifest) -> bool:
    """Does the beacon give any voter a full audit of the sender? Then all may look: who finds something tells them."""
    shares = ((v.public_key, voter_share(plan.voters, v.public_key)) for v in plan.voters)
    return any(audit_depth(beacon, key, sender, steps, manifest.audit, share).full for key, share in shares)
