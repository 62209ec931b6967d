"""The slice stream: serving and fetching reduced slices. What does not hash into the chain is refused.

    asker                                     holder
    (round, output hash)              ->
                                      <-      signed output record; or one empty frame: not held
    what it lacks (see `_Wants`)      ->
                                      <-      those work records, one frame each; then the slice in pieces
    ... again, at most MAX_WANTS times; closing the stream ends it

Every frame has the stall time to move, both ways, and the whole stream the bulk time.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.combine import SliceOutput, check_output, included_keys
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.averaging.works import WorkBook
from distributed_training.chain.base import Verify
from distributed_training.errors import PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.budgets import Repeats
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import NO_BACKUP, Candidate, OutputRecord, SliceSpec
from distributed_training.protocol.wire import (
    decode_output,
    decode_signed,
    output_senders,
    record_hash,
    signing_message,
)

METHOD = "slice"
PIECE_BYTES = 64 * 1024  # of a slice in one frame: what must move within the stall time, and what a reader holds here
MAX_WANTS = 3
PEER_SLICES = 4  # served to one peer at a time; its other streams wait for these, nobody else's do
_REQUEST = struct.Struct("<I32s")
_ABSENT = b""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for one small message, for any progress at all, for a whole slice."""

    control_s: float
    stall_s: float
    bulk_s: float


@dataclass(frozen=True, slots=True)
class _Wants:
    """One byte: 1 = the slice's bytes, 0 = not; then a bit per sender of the record, lowest first: its work record."""

    chunks: bool
    works: tuple[bool, ...]

    def encode(self) -> bytes:
        bits = sum(1 << i for i, bit in enumerate(self.works) if bit)
        return bytes([self.chunks]) + bits.to_bytes((len(self.works) + 7) // 8, "little")

    @staticmethod
    def decode(data: bytes, count: int) -> _Wants:
        """Raises WireError."""
        bits = int.from_bytes(data[1:], "little")
        if len(data) != 1 + (count + 7) // 8 or data[0] > 1 or bits >> count:
            raise WireError("slice: malformed wants")
        return _Wants(bool(data[0]), tuple(bool(bits >> i & 1) for i in range(count)))


class Slices:
    """Both ends of the slice stream, and the kept bytes behind them. One per node."""

    def __init__(
        self,
        manifest: RunManifest,
        peers: PeerBook,
        store: RoundStore,
        works: WorkBook,
        verify: Verify,
        patience: Patience,
    ) -> None:
        self._manifest, self._peers, self._store = manifest, peers, store
        self._works, self._verify, self._patience = works, verify, patience
        self._hashes: dict[tuple[int, bytes], bytes] = {}  # (round, output root) -> hash of a record kept with it
        self._reduced: dict[bytes, int] = {}  # hash of an output record of our own -> its round
        self._serving: dict[bytes, asyncio.Semaphore] = {}  # public key -> its share
        self._repeats = Repeats(forget_s=6 * patience.bulk_s)  # half a round: who joins again asks for all anew

    # --- holder -------------------------------------------------------------------------------------

    async def on_slice(self, stream: Stream) -> None:
        """Answer one stream of METHOD."""
        neuron, payload = await self._peers.accept(stream, self._patience.control_s)
        if len(payload) != _REQUEST.size:
            raise WireError("slice: malformed request")
        share = self._serving.setdefault(neuron.public_key, asyncio.Semaphore(PEER_SLICES))
        async with deadline(2 * self._patience.bulk_s, "slice"), share:
            await self._serve(stream, neuron.public_key, *_REQUEST.unpack(payload))

    async def _serve(self, stream: Stream, asker: bytes, round_index: int, wanted: bytes) -> None:
        stall_s = self._patience.stall_s
        signed_record = self._store.output_record(round_index, wanted)
        if signed_record is None:
            await stream.write(_ABSENT, stall_s)
            return
        await stream.write(signed_record, stall_s)
        senders = output_senders(decode_signed(signed_record).body)
        for _ in range(MAX_WANTS):
            wants = _Wants.decode(await stream.read(1 + (len(senders) + 7) // 8, self._patience.bulk_s), len(senders))
            for sender, wanted_here in zip(senders, wants.works, strict=True):
                if wanted_here:
                    await stream.write(self._store.work(round_index, sender) or _ABSENT, stall_s)
            if wants.chunks:
                await self._give_chunks(stream, asker, round_index, wanted)

    async def _give_chunks(self, stream: Stream, asker: bytes, round_index: int, wanted: bytes) -> None:
        """At once where the round waits for us: the first time, of what we reduced. Else when it is its turn."""
        first = self._repeats.take(asker, (round_index, wanted)) == 0
        at, urgent = 0, first and wanted in self._reduced
        while piece := self._store.output_piece(round_index, wanted, at, PIECE_BYTES):
            if not urgent:
                await self._peers.uplink.turn(len(piece))
            await stream.write(piece, self._patience.stall_s)
            at += len(piece)

    # --- asker --------------------------------------------------------------------------------------

    async def fetch(
        self, peer_key: bytes, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes
    ) -> SliceOutput:
        """One slice from a peer: everything checked, kept. Raises PeerFault, WireError, NetworkFault."""
        async with (
            deadline(self._patience.bulk_s, f"slice {slice_index}"),
            closing(self._open(peer_key, plan, output_hash)) as stream,
        ):
            signed_record = await self._read_record(stream, plan, slice_index)
            record = self._checked(signed_record, plan, slice_index, reducer, output_hash)
            chunks = await self._read_parts(stream, plan, record)
        output = await self._assemble(plan, record, reducer, chunks)
        await self.keep(plan, record, output_hash, StoredOutput(signed_record, chunks))
        return output

    async def fetch_record(
        self, peer_key: bytes, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes
    ) -> OutputRecord:
        """Only the record of a slice. Raises as `fetch`."""
        async with (
            deadline(self._patience.bulk_s, f"record of slice {slice_index}"),
            closing(self._open(peer_key, plan, output_hash)) as stream,
        ):
            signed_record = await self._read_record(stream, plan, slice_index)
        return self._checked(signed_record, plan, slice_index, reducer, output_hash)

    async def ping(self, peer_key: bytes, plan: RoundPlan) -> None:
        """Ask for a slice that there is not: does the peer answer at all? Raises NetworkFault, PeerFault."""
        async with deadline(self._patience.stall_s, "ping"), closing(self._open(peer_key, plan, NO_BACKUP)) as stream:
            await stream.read(len(NO_BACKUP), self._patience.stall_s)

    async def load(self, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes) -> SliceOutput | None:
        """A slice from our own kept bytes, checked like a foreign one; None when absent. Raises WireError: damaged."""
        stored = await asyncio.to_thread(self._store.output, plan.round.index, output_hash)
        if stored is None:
            return None
        record = self._checked(stored.record, plan, slice_index, reducer, output_hash)
        if self._works.lacking(plan, _included(record, plan)):
            return None
        return await self._assemble(plan, record, reducer, stored.chunks)

    def load_record(self, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes) -> OutputRecord | None:
        """As `load`, only the record."""
        signed_record = self._store.output_record(plan.round.index, output_hash)
        if signed_record is None:
            return None
        return self._checked(signed_record, plan, slice_index, reducer, output_hash)

    async def keep(self, plan: RoundPlan, record: OutputRecord, output_hash: bytes, output: StoredOutput) -> None:
        """Keep a slice so that we can serve it; the work records it includes are kept as they come."""
        await asyncio.to_thread(self._store.put_output, plan.round.index, output_hash, output)
        self._hashes = {k: v for k, v in self._hashes.items() if k[0] >= plan.round.index - 1}
        self._hashes[plan.round.index, record.output_root] = output_hash
        self._reduced = {key: index for key, index in self._reduced.items() if index >= plan.round.index - 1}
        if record.public_key == self._peers.public_key:
            self._reduced[output_hash] = plan.round.index

    async def _open(self, peer_key: bytes, plan: RoundPlan, output_hash: bytes) -> Stream:
        request = _REQUEST.pack(plan.round.index, output_hash)
        return await self._peers.open(peer_key, METHOD, request, self._patience.stall_s)

    async def _read_record(self, stream: Stream, plan: RoundPlan, slice_index: int) -> bytes:
        spec, count = plan.slices[slice_index], len(plan.candidates)
        limit = 4096 + 32 * count + (spec.last_chunk - spec.first_chunk) * ((count + 7) // 8)
        signed_record = await stream.read(limit, self._patience.stall_s)
        if signed_record == _ABSENT:
            raise PeerFault(f"does not hold slice {slice_index}")
        return signed_record

    async def _read_parts(self, stream: Stream, plan: RoundPlan, record: OutputRecord) -> bytes:
        """Work records that we lack and the slice's bytes. What another stream asks for already is waited for."""
        members, held = _included(record, plan), await self._held_bytes(plan, record)
        asked = self._works.claim(self._works.lacking(plan, members))
        try:
            await self._ask(stream, plan, asked, chunks=held is None)
            await self._read_works(stream, plan, asked)
        finally:
            self._works.release(asked)
        data = await self._read_chunks(stream, plan, record.slice) if held is None else held
        await self._works.others(self._works.lacking(plan, members), self._patience.stall_s)
        rest = self._works.lacking(plan, members)
        if rest:
            await self._ask(stream, plan, rest, chunks=False)
            await self._read_works(stream, plan, rest)
        return data

    async def _ask(self, stream: Stream, plan: RoundPlan, works: Sequence[Candidate], *, chunks: bool) -> None:
        keys = {c.public_key for c in works}
        wants = _Wants(chunks, tuple(c.public_key in keys for c in plan.candidates))
        if chunks or keys:
            await stream.write(wants.encode(), self._patience.stall_s)

    async def _read_works(self, stream: Stream, plan: RoundPlan, asked: Sequence[Candidate]) -> None:
        for candidate in asked:
            signed = await stream.read(4096 + 4 * plan.layout.num_chunks, self._patience.stall_s)
            self._works.take(plan, candidate, signed)

    async def _read_chunks(self, stream: Stream, plan: RoundPlan, slice_index: int) -> bytes:
        left, parts = slice_bytes(plan, slice_index), []
        while left:
            piece = await stream.read(min(left, PIECE_BYTES), self._patience.stall_s)
            if len(piece) != min(left, PIECE_BYTES):
                raise WireError("slice: wrong number of bytes")
            parts.append(piece)
            left -= len(piece)
        return b"".join(parts)

    async def _held_bytes(self, plan: RoundPlan, record: OutputRecord) -> bytes | None:
        """The same slice under another record of its reducer: it wrote again, to name the output of a backup."""
        former = self._hashes.get((plan.round.index, record.output_root))
        stored = None if former is None else await asyncio.to_thread(self._store.output, plan.round.index, former)
        return None if stored is None or len(stored.chunks) != slice_bytes(plan, record.slice) else stored.chunks

    # --- checks -------------------------------------------------------------------------------------

    def _checked(
        self, signed_record: bytes, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes
    ) -> OutputRecord:
        signed = decode_signed(signed_record)
        if record_hash(signed.body) != output_hash:
            raise WireError("output record: not the one whose hash is on chain")
        if not self._verify(reducer, signing_message(signed.body), signed.signature):
            raise WireError("output record: bad signature")
        record = decode_output(signed.body)
        if record.slice != slice_index or len(record.senders) != len(plan.candidates):
            raise WireError("output record: another slice or other senders")
        return record

    async def _assemble(self, plan: RoundPlan, record: OutputRecord, reducer: bytes, data: bytes) -> SliceOutput:
        found = {c.public_key: self._works.get(plan, c) for c in _included(record, plan)}
        works = {key: work for key, work in found.items() if work is not None}
        spec = replace(plan.slices[record.slice], reducer=reducer)

        def check() -> SliceOutput:
            return check_output(record, cut_slice(plan.layout, spec, data), works, plan, self._manifest, spec)

        return await asyncio.to_thread(check)


def slice_bytes(plan: RoundPlan, slice_index: int) -> int:
    """Encoded size of a slice."""
    spec = plan.slices[slice_index]
    return sum(plan.layout.chunk_bytes(c) for c in range(spec.first_chunk, spec.last_chunk))


def cut_slice(layout: Layout, spec: SliceSpec, data: bytes) -> tuple[bytes, ...]:
    """A slice's bytes, chunk by chunk. Raises WireError for another length."""
    chunks, at = list[bytes](), 0
    for chunk in range(spec.first_chunk, spec.last_chunk):
        chunks.append(data[at : at + layout.chunk_bytes(chunk)])
        at += layout.chunk_bytes(chunk)
    if at != len(data):
        raise WireError(f"slice: {len(data)} bytes of chunks, {at} expected")
    return tuple(chunks)


def _included(record: OutputRecord, plan: RoundPlan) -> list[Candidate]:
    keys = set(included_keys(record, plan))
    return [c for c in plan.candidates if c.public_key in keys]
