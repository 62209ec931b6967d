"""Senders stream their chunks to reducers; reducers check every chunk while it arrives (protocol section 6)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from distributed_training.averaging.codecs import chunk_norm
from distributed_training.averaging.contribution import Contribution, check_work
from distributed_training.averaging.peers import PeerBook
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Verify
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.manifest import RunManifest
from distributed_training.merkle import digest, merkle_root
from distributed_training.network.base import Stream, deadline
from distributed_training.types import Candidate, SliceSpec, WorkRecord
from distributed_training.wire import decode_signed

METHOD = "scatter"
_HEADER = struct.Struct("<IH")
_ACK = b"ok"


@dataclass(slots=True)
class Inbox:
    """What one reducer has received for its slice of one round."""

    plan: RoundPlan
    spec: SliceSpec
    works: dict[bytes, WorkRecord] = field(default_factory=dict)
    signed: dict[bytes, bytes] = field(default_factory=dict)  # public key -> signed work record
    chunks: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    closed: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, key: bytes, signed: bytes, work: WorkRecord, chunks: Mapping[int, bytes]) -> None:
        """Our own contribution, or a sender's whole slice."""
        self.signed[key], self.works[key] = signed, work
        self.chunks.setdefault(key, {}).update(chunks)
        self._changed.set()

    def missing(self) -> list[bytes]:
        """Candidates that have not delivered every chunk of the slice."""
        need = self.spec.last_chunk - self.spec.first_chunk
        return [c.public_key for c in self.plan.candidates if len(self.chunks.get(c.public_key, {})) < need]

    async def wait(self, timeout_s: float) -> None:
        """Until every candidate has delivered, or the time is over; then nothing more is taken."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.missing():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        self.closed = True


async def send_slice(
    peers: PeerBook,
    reducer: Candidate,
    spec: SliceSpec,
    plan: RoundPlan,
    signed: bytes,
    own: Contribution,
    timeout_s: float,
) -> None:
    """Stream one slice of our contribution to its reducer. Raises NetworkFault, DeadlineMissed."""
    header = _HEADER.pack(plan.round.index, spec.index)
    async with deadline(timeout_s, f"slice {spec.index}"):
        stream = await peers.open(reducer.peer_key, METHOD, header, timeout_s)
        try:
            await stream.write(signed, timeout_s)
            await stream.write(b"".join(own.digests), timeout_s)
            for chunk in range(spec.first_chunk, spec.last_chunk):
                await stream.write(own.chunks[chunk], timeout_s)
            if await stream.read(len(_ACK), timeout_s) != _ACK:
                raise NetworkFault("the reducer did not acknowledge the slice")
        finally:
            await stream.close()


def parse_header(payload: bytes) -> tuple[int, int]:
    """(round, slice). Raises WireError."""
    if len(payload) != _HEADER.size:
        raise WireError("scatter: malformed header")
    return _HEADER.unpack(payload)


async def receive_slice(
    stream: Stream, candidate: Candidate, inbox: Inbox, manifest: RunManifest, verify: Verify, timeout_s: float
) -> None:
    """The reducer's side. Chunks already in stay in when the stream breaks later; each is checked on its own."""
    plan, spec, layout = inbox.plan, inbox.spec, inbox.plan.layout
    signed = await stream.read(4096 + 4 * layout.num_chunks, timeout_s)
    work = check_work(decode_signed(signed), candidate, plan, manifest, verify)
    digests = cut_digests(await stream.read(32 * layout.num_chunks, timeout_s), layout.num_chunks)
    if merkle_root(digests) != work.wire_root:
        raise WireError("scatter: digests do not hash into the wire root")
    inbox.put(candidate.public_key, signed, work, {})
    for chunk in range(spec.first_chunk, spec.last_chunk):
        data = await stream.read(layout.chunk_bytes(chunk), timeout_s)
        if digest(data) != digests[chunk]:
            raise WireError(f"scatter: chunk {chunk} is not the committed one")
        if chunk_norm(data, layout, chunk) != work.chunk_norms[chunk]:
            raise WireError(f"scatter: chunk {chunk} has another norm than declared")
        if inbox.closed:
            raise PeerFault("scatter: too late")
        inbox.put(candidate.public_key, signed, work, {chunk: data})
    await stream.write(_ACK, timeout_s)


def cut_digests(data: bytes, count: int) -> Sequence[bytes]:
    if len(data) != 32 * count:
        raise WireError(f"digests: {len(data)} bytes, {32 * count} expected")
    return [data[i : i + 32] for i in range(0, len(data), 32)]
