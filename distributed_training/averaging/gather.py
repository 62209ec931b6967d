"""Serving and fetching reduced slices. What does not hash into the record on chain is refused."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from distributed_training.averaging.combine import SliceOutput, check_output, included_keys
from distributed_training.averaging.contribution import check_work
from distributed_training.averaging.peers import PeerBook
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.chain.base import Verify
from distributed_training.errors import PeerFault, WireError
from distributed_training.manifest import RunManifest
from distributed_training.network.base import Stream, deadline
from distributed_training.types import WorkRecord
from distributed_training.wire import decode_output, decode_signed, record_hash, signing_message

METHOD = "slice"
_REQUEST = struct.Struct("<I32s")
_ABSENT = b""


async def serve_slice(stream: Stream, payload: bytes, store: RoundStore, timeout_s: float) -> None:
    """Answer (round, output hash) with record, work records of all senders we hold, chunks; or one empty frame."""
    if len(payload) != _REQUEST.size:
        raise WireError("slice: malformed request")
    round_index, wanted = _REQUEST.unpack(payload)
    stored = store.output(round_index, wanted)
    if stored is None:
        await stream.write(_ABSENT, timeout_s)
        return
    record = decode_output(decode_signed(stored.record).body)
    used = [any(row[i] for row in record.included) for i in range(len(record.senders))]
    await stream.write(stored.record, timeout_s)
    for sender, needed in zip(record.senders, used, strict=True):
        if needed:
            await stream.write(store.work(round_index, sender) or _ABSENT, timeout_s)
    await stream.write(stored.chunks, timeout_s)


async def fetch_slice(
    peers: PeerBook,
    peer_key: bytes,
    plan: RoundPlan,
    slice_index: int,
    output_hash: bytes,
    manifest: RunManifest,
    verify: Verify,
    store: RoundStore,
    timeout_s: float,
) -> SliceOutput:
    """Fetch one slice from a peer, check everything, keep it. Raises PeerFault, WireError, NetworkFault."""
    spec, layout = plan.slices[slice_index], plan.layout
    size = sum(layout.chunk_bytes(c) for c in range(spec.first_chunk, spec.last_chunk))
    count = len(plan.candidates)
    record_limit = 4096 + 32 * count + (spec.last_chunk - spec.first_chunk) * ((count + 7) // 8)
    async with deadline(timeout_s, f"slice {slice_index}"):
        stream = await peers.open(peer_key, METHOD, _REQUEST.pack(plan.round.index, output_hash), timeout_s)
        try:
            signed_record = await stream.read(record_limit, timeout_s)
            if signed_record == _ABSENT:
                raise PeerFault(f"does not hold slice {slice_index}")
            record = decode_output(decode_signed(signed_record).body)
            _check_record(signed_record, plan, slice_index, output_hash, verify)
            signed_works = {}
            for key in included_keys(record, plan):
                signed_works[key] = await stream.read(4096 + 4 * layout.num_chunks, timeout_s)
            chunks = await stream.read(size, timeout_s)
        finally:
            await stream.close()
    output = _assemble(plan, slice_index, signed_record, signed_works, chunks, manifest, verify)
    keep_output(store, plan, output_hash, StoredOutput(signed_record, chunks), signed_works)
    return output


def load_slice(
    plan: RoundPlan, slice_index: int, output_hash: bytes, manifest: RunManifest, verify: Verify, store: RoundStore
) -> SliceOutput | None:
    """A slice from our own kept bytes, checked like a foreign one; None when absent or incomplete."""
    stored = store.output(plan.round.index, output_hash)
    if stored is None:
        return None
    _check_record(stored.record, plan, slice_index, output_hash, verify)
    record = decode_output(decode_signed(stored.record).body)
    signed_works: dict[bytes, bytes] = {}
    for key in included_keys(record, plan):
        candidate = plan.candidate(key)
        signed = store.work(plan.round.index, candidate.record_hash) if candidate else None
        if signed is None:
            return None
        signed_works[key] = signed
    return _assemble(plan, slice_index, stored.record, signed_works, stored.chunks, manifest, verify)


def keep_output(
    store: RoundStore, plan: RoundPlan, output_hash: bytes, output: StoredOutput, signed_works: Mapping[bytes, bytes]
) -> None:
    """Keep a slice and the work records it includes, so that we can serve both."""
    for key, signed in signed_works.items():
        candidate = plan.candidate(key)
        if candidate is not None:
            store.put_work(plan.round.index, candidate.record_hash, signed)
    store.put_output(plan.round.index, output_hash, output)


def _check_record(signed_record: bytes, plan: RoundPlan, slice_index: int, output_hash: bytes, verify: Verify) -> None:
    signed = decode_signed(signed_record)
    if record_hash(signed.body) != output_hash:
        raise WireError("output record: not the one whose hash is on chain")
    if not verify(plan.slices[slice_index].reducer, signing_message(signed.body), signed.signature):
        raise WireError("output record: bad signature")
    record = decode_output(signed.body)
    if record.slice != slice_index or len(record.senders) != len(plan.candidates):
        raise WireError("output record: another slice or other senders")


def _assemble(
    plan: RoundPlan,
    slice_index: int,
    signed_record: bytes,
    signed_works: Mapping[bytes, bytes],
    data: bytes,
    manifest: RunManifest,
    verify: Verify,
) -> SliceOutput:
    spec, layout = plan.slices[slice_index], plan.layout
    works: dict[bytes, WorkRecord] = {}
    for key, signed in signed_works.items():
        candidate = plan.candidate(key)
        if candidate is None:
            raise WireError("output record: includes a stranger")
        works[key] = check_work(decode_signed(signed), candidate, plan, manifest, verify)
    chunks, at = [], 0
    for chunk in range(spec.first_chunk, spec.last_chunk):
        chunks.append(data[at : at + layout.chunk_bytes(chunk)])
        at += layout.chunk_bytes(chunk)
    if at != len(data):
        raise WireError("slice: wrong number of bytes")
    return check_output(decode_output(decode_signed(signed_record).body), chunks, works, plan, manifest)
