"""The arithmetic of the all-reduce: reduce one slice, check one output, join the counted slices.

Pure functions of bytes and records, used alike by reducers, gatherers and the offline check.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.codecs.int8 import chunk_norm, decode_chunk, encode_chunk, rounding_norm
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import AverageSection, RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.rules import weighting
from distributed_training.protocol.rules.membership import CARRY_ROUNDS, Counted
from distributed_training.protocol.types import (
    NO_BACKUP,
    AverageOutcome,
    Carry,
    CarryRound,
    OutputRecord,
    SliceSpec,
    WorkRecord,
)


@dataclass(frozen=True, slots=True)
class SliceOutput:
    """One reduced slice: its record, its encoded chunks, and the work records of the senders it includes."""

    record: OutputRecord
    chunks: tuple[bytes, ...]
    works: Mapping[bytes, WorkRecord]  # by public key; at least those of included senders


def sender_weight(work: WorkRecord, plan: RoundPlan, average: AverageSection) -> float:
    """a_i of section 6, before normalisation."""
    return weighting.raw_weight(work.tokens, weighting.vector_norm(work.chunk_norms), plan.tau, average)


def reduce_slice(
    plan: RoundPlan,
    spec: SliceSpec,
    received: Mapping[bytes, Mapping[int, bytes]],
    works: Mapping[bytes, WorkRecord],
    manifest: RunManifest,
) -> SliceOutput:
    """received: public key -> chunk index -> bytes already checked against the sender's root and norm.

    The output is `spec.reducer`'s: the slice's own, or its backup. Senders are added in the order of their public
    keys; a sender of zero weight is never included.
    """
    raw = {key: sender_weight(work, plan, manifest.average) for key, work in works.items()}
    keys = [c.public_key for c in plan.candidates]
    chunks, rows = [], []
    for chunk in range(spec.first_chunk, spec.last_chunk):
        row = tuple(raw.get(key, 0.0) > 0 and chunk in received.get(key, {}) for key in keys)
        senders = [key for key, bit in zip(keys, row, strict=True) if bit]
        parts = [(raw[key], received[key][chunk]) for key in senders]
        chunks.append(reduce_chunk(plan, chunk, parts))
        rows.append(row)
    record = OutputRecord(
        manifest=manifest.digest,
        round=plan.round.index,
        slice=spec.index,
        public_key=spec.reducer,
        output_root=merkle_root([digest(c) for c in chunks]),
        backup=NO_BACKUP,
        senders=tuple(c.record_hash for c in plan.candidates),
        included=tuple(rows),
    )
    return SliceOutput(record, tuple(chunks), dict(works))


def reduce_chunk(plan: RoundPlan, chunk: int, parts: Sequence[tuple[float, bytes]]) -> bytes:
    """Weighted mean of (raw weight, encoded chunk) in the order given, encoded once."""
    start, stop = plan.layout.coords(chunk)
    total: Vector = np.zeros(stop - start, np.float32)
    if parts:
        for share, (_, data) in zip(weighting.shares([a for a, _ in parts]), parts, strict=True):
            scaled = decode_chunk(data, plan.layout, chunk) * share
            total = np.add(total, scaled, dtype=np.float32)
    return encode_chunk(total, plan.layout)


def check_output(
    record: OutputRecord,
    chunks: Sequence[bytes],
    works: Mapping[bytes, WorkRecord],
    plan: RoundPlan,
    manifest: RunManifest,
    spec: SliceSpec,
) -> SliceOutput:
    """A foreign slice against the plan; hash and signature of the record are the caller's. Raises WireError.

    `spec`: the slice that was asked for, `spec.reducer` whose output counts by the chain: the slice's own reducer or
    its backup. A backup's output names none.
    """
    expected = (manifest.digest, plan.round.index, spec.index, spec.reducer)
    if (record.manifest, record.round, record.slice, record.public_key) != expected:
        raise WireError("output record: another run, round, slice or reducer")
    if spec.reducer != plan.slices[spec.index].reducer and record.backup != NO_BACKUP:
        raise WireError("output record: a backup's output names another")
    if record.senders != tuple(c.record_hash for c in plan.candidates):
        raise WireError("output record: not the senders of this round")
    if len(record.included) != spec.last_chunk - spec.first_chunk or len(chunks) != len(record.included):
        raise WireError("output record: wrong number of chunks")
    if merkle_root([digest(c) for c in chunks]) != record.output_root:
        raise WireError("output record: the chunks are others")
    for offset, data in enumerate(chunks):
        decode_chunk(data, plan.layout, spec.first_chunk + offset)
    for key in included_keys(record, plan):
        if key not in works or sender_weight(works[key], plan, manifest.average) <= 0:
            raise WireError("output record: includes a sender without a work record or without weight")
    return SliceOutput(record, tuple(chunks), works)


def included_keys(record: OutputRecord, plan: RoundPlan) -> tuple[bytes, ...]:
    """Senders with at least one chunk in the slice."""
    return tuple(c.public_key for i, c in enumerate(plan.candidates) if any(row[i] for row in record.included))


def combine(
    plan: RoundPlan, counted: Counted, outputs: Mapping[int, SliceOutput], manifest: RunManifest
) -> tuple[Vector, Carry, AverageOutcome]:
    """Average, next carry and outcome of a round that is applied; `outputs` holds every counted slice."""
    keys = [c.public_key for c in plan.candidates]
    bits = {j: np.asarray(outputs[j].record.included, bool).reshape(-1, len(keys)) for j in counted.slices}
    by_slice = np.stack([2 * bits[j].sum(axis=0) >= len(bits[j]) for j in counted.slices])
    expected = 2 * by_slice.sum(axis=0) >= len(counted.slices)
    works = {key: work for j in counted.slices for key, work in outputs[j].works.items()}
    raw = {key: sender_weight(work, plan, manifest.average) for key, work in works.items()}
    average = np.zeros(plan.layout.num_coords, np.float32)
    for j in counted.slices:
        for offset, data in enumerate(outputs[j].chunks):
            chunk = plan.slices[j].first_chunk + offset
            row = bits[j][offset]
            senders = [key for key, bit in zip(keys, row, strict=True) if bit]
            pairs = [(raw[key], works[key].chunk_norms[chunk]) for key in senders]
            missing = int((expected & ~row).sum())
            norm = chunk_norm(data, plan.layout, chunk)
            slack = rounding_norm(data, plan.layout, chunk)
            if weighting.passes_gate(norm, slack, pairs, int(expected.sum()), missing, manifest.average):
                average[slice(*plan.layout.coords(chunk))] = decode_chunk(data, plan.layout, chunk)
    included = _where(keys, expected)
    everything = np.concatenate([bits[j] for j in counted.slices])
    credit = {key: float(everything[:, i].sum()) / len(everything) for i, key in enumerate(keys)}
    backed_up = tuple(j for j in counted.slices if outputs[j].record.public_key != plan.slices[j].reducer)
    outcome = AverageOutcome(
        round=plan.round.index,
        applied=True,
        reason=counted.reason,
        included=included,
        counted=counted.slices,
        backed_up=backed_up,
        num_slices=len(plan.slices),
        credit=credit,
        missing={j: _where(keys, ~has) for j, has in zip(counted.slices, by_slice, strict=True) if not has.all()},
    )
    return average, next_carry(plan, set(counted.slices) - set(backed_up), included, works, manifest), outcome


def _where(keys: Sequence[bytes], bits: Iterable[bool]) -> tuple[bytes, ...]:
    return tuple(key for key, bit in zip(keys, bits, strict=True) if bit)


def next_carry(
    plan: RoundPlan,
    reduced: Collection[int],
    included: Sequence[bytes],
    works: Mapping[bytes, WorkRecord],
    manifest: RunManifest,
) -> Carry:
    """tau from the included norms; one more round in the history of inclusion and failure.

    `reduced`: counted slices that their own reducers reduced. The reducers of all others failed.
    """
    failed = sorted(spec.reducer for spec in plan.slices if spec.index not in reduced)
    norms = [weighting.vector_norm(works[key].chunk_norms) for key in included]
    tau = weighting.next_tau(norms, plan.tau, manifest.average)
    if not math.isfinite(tau):
        raise WireError("clip threshold is not finite")
    history = (*plan.carry.rounds, CarryRound(tuple(sorted(included)), tuple(failed)))
    return Carry(tau, history[-CARRY_ROUNDS:])


def discarded(plan: RoundPlan, reason: str) -> AverageOutcome:
    """State unchanged, nothing credited."""
    return AverageOutcome(
        round=plan.round.index,
        applied=False,
        reason=reason,
        included=(),
        counted=(),
        backed_up=(),
        num_slices=len(plan.slices),
        credit={},
        missing={},
    )
