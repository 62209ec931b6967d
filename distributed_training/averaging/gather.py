"""The slice stream: fetching reduced slices, and keeping them. What does not hash into the chain is refused.

    asker                                     holder (`giving`)
    (round, output hash)              ->
                                      <-      signed output record; or one empty frame: not held
    what it lacks (see `wants`)       ->
                                      <-      those work records, then the slice's chunks, one frame each
    ... again, at most MAX_WANTS times; closing the stream ends it

Every frame has the stall time to move, both ways, and the whole stream the bulk time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from distributed_training.averaging.codecs.base import Chunk, Codec, Layout
from distributed_training.averaging.combine import (
    SliceOutput,
    check_output,
    check_record,
    check_root,
)
from distributed_training.averaging.giving import Giving
from distributed_training.averaging.members import check_members, included_bits
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.shelf import Shelf
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.averaging.wants import ABSENT, METHOD, REQUEST, Patience, Wants
from distributed_training.averaging.works import WorkBook
from distributed_training.chain.base import Verify
from distributed_training.errors import PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.types import NO_BACKUP, Candidate, OutputRecord, SliceSpec
from distributed_training.protocol.wire import decode_output, decode_signed, record_hash, signing_message


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
        self.giving = Giving(manifest, peers, store, patience)
        self._hashes: dict[tuple[int, bytes], bytes] = {}  # (round, output root) -> hash of a record kept with it
        self._ours: SliceOutput | None = None  # what we reduced last, until it is gathered

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
            check_record(record, plan, self._manifest, replace(plan.slices[slice_index], reducer=reducer))
            record = replace(record, senders=plan.senders)  # equal, and one for all slices
            chunks = await self._read_parts(stream, plan, record)
        output = self._whole(plan, record, chunks)
        await self.keep(plan, output, output_hash, signed_record)
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
        """A slice that we hold, or from our own kept bytes, checked like a foreign one; None when absent. Raises
        WireError: damaged.
        """
        held = self.giving.held(output_hash)
        if held is not None and held is self._ours:
            self._ours = None
            output = replace(held, works=self._works.of(plan, included_bits(held.record)))
            self.giving.have(plan.round.index, output_hash, output)
            return output
        stored = await asyncio.to_thread(self._store.output, plan.round.index, output_hash)
        if stored is None:
            return None
        record = self._checked(stored.record, plan, slice_index, reducer, output_hash)
        included = included_bits(record)
        if self._works.lacking(plan, included):
            return None
        works, spec = self._works.of(plan, included), replace(plan.slices[slice_index], reducer=reducer)

        def check() -> SliceOutput:
            chunks = cut_slice(plan.layout, plan.output, spec, stored.whole)
            return check_output(record, chunks, works, plan, self._manifest, spec)

        output = await asyncio.to_thread(check)
        self.giving.have(plan.round.index, output_hash, output)
        return output

    def load_record(self, plan: RoundPlan, slice_index: int, reducer: bytes, output_hash: bytes) -> OutputRecord | None:
        """As `load`, only the record."""
        signed_record = self._store.output_record(plan.round.index, output_hash)
        if signed_record is None:
            return None
        return self._checked(signed_record, plan, slice_index, reducer, output_hash)

    async def keep(self, plan: RoundPlan, output: SliceOutput, output_hash: bytes, signed_record: bytes) -> None:
        """Keep a slice so that we can serve it; the work records it includes are kept as they come."""
        stored = StoredOutput(signed_record, tuple(chunk.data for chunk in output.chunks))
        await asyncio.to_thread(self._store.put_output, plan.round.index, output_hash, stored)
        self._hashes = {k: v for k, v in self._hashes.items() if k[0] >= plan.round.index - 1}
        self._hashes[plan.round.index, output.record.output_root] = output_hash
        self.giving.have(plan.round.index, output_hash, output)
        if output.record.public_key == self._peers.public_key:
            self._ours = output

    async def _open(self, peer_key: bytes, plan: RoundPlan, output_hash: bytes) -> Stream:
        request = REQUEST.pack(plan.round.index, output_hash)
        return await self._peers.open(peer_key, METHOD, request, self._patience.stall_s)

    async def _read_record(self, stream: Stream, plan: RoundPlan, slice_index: int) -> bytes:
        spec, count = plan.slices[slice_index], len(plan.candidates)
        limit = 4096 + 32 * count + (spec.last_chunk - spec.first_chunk) * ((count + 7) // 8)
        signed_record = await stream.read(limit, self._patience.stall_s)
        if signed_record == ABSENT:
            raise PeerFault(f"does not hold slice {slice_index}")
        return signed_record

    async def _read_parts(self, stream: Stream, plan: RoundPlan, record: OutputRecord) -> tuple[Chunk, ...]:
        """Work records that we lack and the slice's chunks. What another stream asks for already is waited for."""
        included, held = included_bits(record), await self._held_chunks(plan, record)
        asked = self._works.claim(self._works.lacking(plan, included))
        try:
            await self._ask(stream, plan, asked, chunks=held is None)
            await self._read_works(stream, plan, asked)
        finally:
            self._works.release(asked)
        chunks = await self._read_chunks(stream, plan, record) if held is None else held
        await self._works.others(self._works.lacking(plan, included), self._patience.stall_s)
        rest = self._works.lacking(plan, included)
        if rest:
            await self._ask(stream, plan, rest, chunks=False)
            await self._read_works(stream, plan, rest)
        return chunks

    async def _ask(self, stream: Stream, plan: RoundPlan, works: Sequence[Candidate], *, chunks: bool) -> None:
        keys = {c.public_key for c in works}
        wants = Wants(chunks, tuple(c.public_key in keys for c in plan.candidates))
        if chunks or keys:
            await stream.write(wants.encode(), self._patience.stall_s)

    async def _read_works(self, stream: Stream, plan: RoundPlan, asked: Sequence[Candidate]) -> None:
        for candidate in asked:
            signed = await stream.read(4096 + 4 * plan.layout.num_chunks, self._patience.stall_s)
            self._works.take(plan, candidate, signed)

    async def _read_chunks(self, stream: Stream, plan: RoundPlan, record: OutputRecord) -> tuple[Chunk, ...]:
        """Each is checked, and its norms are known, as it comes."""
        spec, digests, chunks = plan.slices[record.slice], list[bytes](), list[Chunk]()
        shelf = Shelf(plan.layout, plan.output, spec)
        for chunk in range(spec.first_chunk, spec.last_chunk):
            size = plan.output.chunk_bytes(plan.layout, chunk)
            data = await stream.read(size, self._patience.stall_s)
            if len(data) != size:
                raise WireError("slice: wrong number of bytes")
            digests.append(digest(data))
            chunks.append(_parsed(plan, chunk, shelf.put(chunk, data)))
        check_root(record, digests)
        return tuple(chunks)

    async def _held_chunks(self, plan: RoundPlan, record: OutputRecord) -> tuple[Chunk, ...] | None:
        """The same slice under another record of its reducer: it wrote again, to name the output of a backup."""
        former = self._hashes.get((plan.round.index, record.output_root))
        if former is None:
            return None
        held = self.giving.held(former)
        return held.chunks if held is not None else await asyncio.to_thread(self._stored_chunks, plan, record, former)

    def _stored_chunks(self, plan: RoundPlan, record: OutputRecord, former: bytes) -> tuple[Chunk, ...] | None:
        stored, spec = self._store.output(plan.round.index, former), plan.slices[record.slice]
        try:
            data = [] if stored is None else cut_slice(plan.layout, plan.output, spec, stored.whole)
            check_root(record, [digest(each) for each in data])
            return tuple(_parsed(plan, chunk, each) for chunk, each in enumerate(data, spec.first_chunk))
        except WireError:
            return None  # damaged: it is fetched

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

    def _whole(self, plan: RoundPlan, record: OutputRecord, chunks: tuple[Chunk, ...]) -> SliceOutput:
        works = self._works.of(plan, included_bits(record))
        check_members(record, works, plan, self._manifest)
        return SliceOutput(record, chunks, works)


def _parsed(plan: RoundPlan, chunk: int, data: bytes) -> Chunk:
    """Raises WireError. With it is found out what the gate will ask for."""
    parsed = plan.output.parse(data, plan.layout, chunk)
    parsed.norm()
    parsed.rounding_norm()
    return parsed


def cut_slice(layout: Layout, codec: Codec, spec: SliceSpec, data: bytes) -> tuple[bytes, ...]:
    """A slice's bytes, chunk by chunk. Raises WireError for another length."""
    chunks, at = list[bytes](), 0
    for chunk in range(spec.first_chunk, spec.last_chunk):
        size = codec.chunk_bytes(layout, chunk)
        chunks.append(data[at : at + size])
        at += size
    if at != len(data):
        raise WireError(f"slice: {len(data)} bytes of chunks, {at} expected")
    return tuple(chunks)
