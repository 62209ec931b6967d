"""Counted slices of one round again, from bytes that nodes kept: found by hash, checked, reduced once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distributed_training.averaging.codecs.base import Chunk
from distributed_training.averaging.combine import SliceOutput, check_output, reduce_slice
from distributed_training.averaging.contribution import check_work, from_chunks, split_wire
from distributed_training.averaging.gather import cut_slice
from distributed_training.averaging.plan import RoundPlan
from distributed_training.averaging.store import RoundStore, StoredOutput
from distributed_training.chain.keys import verify
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.membership import Claim
from distributed_training.protocol.types import OutputRecord, SliceSpec, WorkRecord
from distributed_training.protocol.wire import decode_output, decode_signed, record_hash, signing_message

Stores = Mapping[str, RoundStore]
Chunks = tuple[bytes, ...]


def counted_outputs(
    plan: RoundPlan, claims: Mapping[int, Claim], stores: Stores, manifest: RunManifest
) -> tuple[dict[int, SliceOutput], int, list[str]]:
    """Slice -> checked output, the number of slices that were recomputed bit for bit, and problems in words.

    `claims`: slice index -> what the chain says of its output, of the counted slices.
    """
    works, problems = kept_works(plan, stores, manifest)
    wires = kept_wires(plan, works, stores, problems)
    outputs: dict[int, SliceOutput] = {}
    same = 0
    for index, claim in claims.items():
        spec = replace(plan.slices[index], reducer=claim.reducer)
        try:
            wanted = named_output(plan, claim, stores) if claim.by_backup else claim.record_hash
            output = kept_output(plan, spec, wanted, works, stores, manifest)
            outputs[index] = output
            compare(plan, spec, output, works, wires, manifest)
            same += 1
        except WireError as error:
            problems.append(f"slice {index}: {error}")
    return outputs, same, problems


def kept_works(plan: RoundPlan, stores: Stores, manifest: RunManifest) -> tuple[dict[bytes, WorkRecord], list[str]]:
    """Public key -> the valid work record behind the hash on chain, from whoever keeps it.

    An invalid record is no problem of the round: nobody may include its sender, which `check_output` sees to.
    """
    works: dict[bytes, WorkRecord] = {}
    problems: list[str] = []
    for candidate in plan.candidates:
        data = next(filter(None, (s.work(plan.round.index, candidate.record_hash) for s in stores.values())), None)
        if data is None:
            problems.append(f"nobody keeps the work record of uid {candidate.uid}")
            continue
        try:
            works[candidate.public_key] = check_work(decode_signed(data), candidate, plan, manifest, verify)
        except WireError:
            continue
    return works, problems


def kept_wires(
    plan: RoundPlan, works: Mapping[bytes, WorkRecord], stores: Stores, problems: list[str]
) -> dict[bytes, Chunks]:
    """Public key -> the sender's own chunks, recognised by the wire root it committed."""
    by_root: dict[bytes, tuple[Chunks, tuple[float, ...]]] = {}
    for store in stores.values():
        data = store.own_wire(plan.round.index)
        if data is not None:
            found = _contribution(data, plan)
            if found is not None:
                by_root[found[0]] = found[1]
    wires: dict[bytes, Chunks] = {}
    for candidate in plan.candidates:
        work = works.get(candidate.public_key)
        if work is None:
            continue
        if work.wire_root not in by_root:
            problems.append(f"uid {candidate.uid} does not keep the wire bytes it committed")
            continue
        chunks, norms = by_root[work.wire_root]
        if norms != work.chunk_norms:
            problems.append(f"uid {candidate.uid} declared other chunk norms than its wire bytes have")
        wires[candidate.public_key] = chunks
    return wires


def _contribution(data: bytes, plan: RoundPlan) -> tuple[bytes, tuple[Chunks, tuple[float, ...]]] | None:
    try:
        made = from_chunks(split_wire(data, plan.layout, plan.uplink), plan.layout, plan.uplink)
    except WireError:
        return None
    return made.wire_root, (made.chunks, made.norms)


def named_output(plan: RoundPlan, claim: Claim, stores: Stores) -> bytes:
    """Hash of the output that a backup's own record names. Raises WireError."""
    for store in stores.values():
        stored = store.output(plan.round.index, claim.record_hash)
        if stored is not None and record_hash(decode_signed(stored.record).body) == claim.record_hash:
            return decode_output(decode_signed(stored.record).body).backup
    raise WireError("nobody keeps the backup's record, which names its output")


def kept_output(
    plan: RoundPlan,
    spec: SliceSpec,
    wanted: bytes,
    works: Mapping[bytes, WorkRecord],
    stores: Stores,
    manifest: RunManifest,
) -> SliceOutput:
    """The output behind the hash on chain, fully checked, from the first node with a whole copy. Raises WireError."""
    problem = WireError("nobody keeps its output")
    for store in stores.values():
        stored = store.output(plan.round.index, wanted)
        if stored is None:
            continue
        try:
            record = signed_output(stored, spec, wanted)
            return check_output(
                record, cut_slice(plan.layout, plan.output, spec, stored.whole), works, plan, manifest, spec
            )
        except WireError as error:  # another node may keep a whole copy
            problem = error
    raise problem


def signed_output(stored: StoredOutput, spec: SliceSpec, wanted: bytes) -> OutputRecord:
    signed = decode_signed(stored.record)
    if record_hash(signed.body) != wanted:
        raise WireError("the record kept is not the one whose hash is on chain")
    if not verify(spec.reducer, signing_message(signed.body), signed.signature):
        raise WireError("the record's signature is not its reducer's")
    return decode_output(signed.body)


def compare(
    plan: RoundPlan,
    spec: SliceSpec,
    output: SliceOutput,
    works: Mapping[bytes, WorkRecord],
    wires: Mapping[bytes, Chunks],
    manifest: RunManifest,
) -> None:
    """Reduce again what the record says was included; raises WireError unless every byte is the same."""
    received = {c.public_key: included_chunks(plan, i, spec, output, wires) for i, c in enumerate(plan.candidates)}
    again = reduce_slice(plan, spec, received, works, manifest)
    different = [c for c, (a, b) in enumerate(zip(again.chunks, output.chunks, strict=True)) if a != b]
    if different:
        raise WireError(f"{len(different)} of {len(output.chunks)} chunks are not the average of what went in")
    if replace(again.record, backup=output.record.backup) != output.record:
        raise WireError("the output record differs from the recomputed one")


def included_chunks(
    plan: RoundPlan, column: int, spec: SliceSpec, output: SliceOutput, wires: Mapping[bytes, Chunks]
) -> dict[int, Chunk]:
    """Chunk index -> what this candidate sent, for the chunks in which the record includes it. Raises WireError."""
    candidate = plan.candidates[column]
    chunks = [spec.first_chunk + i for i, row in enumerate(output.record.included) if row[column]]
    if chunks and candidate.public_key not in wires:
        raise WireError(f"includes uid {candidate.uid}, whose wire bytes are kept by nobody")
    return {chunk: plan.uplink.parse(wires[candidate.public_key][chunk], plan.layout, chunk) for chunk in chunks}
