"""The arithmetic of the all-reduce: reduce one slice, check one output, join the counted slices.

Pure functions of bytes and records, used alike by reducers, gatherers and the offline check.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from distributed_training.averaging.codecs.base import Chunk, Codec, Layout, Vector
from distributed_training.averaging.members import check_members, sender_weight
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.rules import duty, left, weighting
from distributed_training.protocol.rules.membership import Counted
from distributed_training.protocol.rules.slices import FAILED_ROUNDS
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import (
    NO_BACKUP,
    AverageOutcome,
    Carry,
    OutputRecord,
    SliceSpec,
    WorkRecord,
)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class SliceOutput:
    """One reduced slice: its record, its encoded chunks, and the work records of the senders it includes."""

    record: OutputRecord
    chunks: tuple[Chunk, ...]
    works: Mapping[bytes, WorkRecord]  # by public key; at least those of included senders


Made = tuple[tuple[bytes, ...], Chunk]  # of whom, and what they gave
Weighed = tuple[float, tuple[float, ...]]  # a sender's weight and its norms of all chunks


@dataclass(frozen=True, slots=True)
class Combined:
    """What a round that is applied makes of its slices; nothing is decoded yet."""

    chunks: tuple[Chunk | None, ...]  # of the whole vector; None: zeros
    carry: Carry
    outcome: AverageOutcome

    def averages(self, layout: Layout) -> Iterator[Vector]:
        """The weighted mean of theta_r - theta_{r,H}, fp32, chunk by chunk; each is overwritten by the next."""
        memory: Vector = np.empty(min(layout.chunk_coords, layout.num_coords), np.float32)
        for index, chunk in enumerate(self.chunks):
            start, stop = layout.coords(index)
            values = memory[: stop - start]
            if chunk is None:
                values.fill(0)
            else:
                chunk.decode(values)
            yield values


def reduce_slice(
    plan: RoundPlan,
    spec: SliceSpec,
    received: Mapping[bytes, Mapping[int, Chunk]],
    works: Mapping[bytes, WorkRecord],
    manifest: RunManifest,
    ready: Mapping[int, Made] | None = None,
) -> SliceOutput:
    """received: public key -> chunk index -> what was already checked against the sender's root and norm. ready: chunks
    that were reduced before; made of other senders than are here now, they are reduced anew.

    The output is `spec.reducer`'s: the slice's own, or its backup. Senders are added in the order of their public
    keys; a sender of zero weight is never included.
    """
    raw = {key: sender_weight(work, plan, manifest.average) for key, work in works.items()}
    reducer, chunks, rows = ChunkReducer(plan.layout, plan.output), list[Chunk](), []
    for chunk in range(spec.first_chunk, spec.last_chunk):
        senders = _senders(plan, chunk, received, raw)
        former = None if ready is None else ready.get(chunk)
        if former is None or former[0] != senders:
            former = reduce_chunk(reducer, plan, chunk, received, raw)
        chunks.append(former[1])
        there = frozenset(former[0])
        rows.append(tuple(c.public_key in there for c in plan.candidates))
    record = OutputRecord(
        manifest=manifest.digest,
        round=plan.round.index,
        slice=spec.index,
        public_key=spec.reducer,
        output_root=merkle_root([digest(c.data) for c in chunks]),
        backup=NO_BACKUP,
        senders=tuple(c.record_hash for c in plan.candidates),
        included=tuple(rows),
    )
    return SliceOutput(record, tuple(chunks), dict(works))


def reduce_chunk(
    reducer: ChunkReducer,
    plan: RoundPlan,
    chunk: int,
    received: Mapping[bytes, Mapping[int, Chunk]],
    raw: Mapping[bytes, float],
) -> Made:
    """One chunk of what `reduce_slice` makes. raw: weights of the senders."""
    senders = _senders(plan, chunk, received, raw)
    return senders, reducer.reduce(chunk, [(raw[key], received[key][chunk]) for key in senders])


def _senders(
    plan: RoundPlan, chunk: int, received: Mapping[bytes, Mapping[int, Chunk]], raw: Mapping[bytes, float]
) -> tuple[bytes, ...]:
    """Of a chunk, in the order of their public keys."""
    keys = (c.public_key for c in plan.candidates)
    return tuple(key for key in keys if raw.get(key, 0.0) > 0 and chunk in received.get(key, {}))


class ChunkReducer:
    """Reduces one chunk after the other in memory of its own."""

    def __init__(self, layout: Layout, codec: Codec) -> None:
        """codec: of what it gives."""
        self._layout, self._encoder = layout, codec.encoder(layout)
        self._total, self._part = np.empty((2, min(layout.chunk_coords, layout.num_coords)), np.float32)

    def reduce(self, chunk: int, parts: Sequence[tuple[float, Chunk]]) -> Chunk:
        """Weighted mean of (raw weight, encoded chunk) in the order given, encoded once."""
        start, stop = self._layout.coords(chunk)
        total = self._total[: stop - start]
        total.fill(0)
        if parts:
            for share, (_, sent) in zip(weighting.shares([a for a, _ in parts]), parts, strict=True):
                sent.add_to(total, share, self._part)
        return self._encoder.encode(total)


def check_output(
    record: OutputRecord,
    chunks: Sequence[bytes],
    works: Mapping[bytes, WorkRecord],
    plan: RoundPlan,
    manifest: RunManifest,
    spec: SliceSpec,
) -> SliceOutput:
    """A foreign slice against the plan; hash and signature of the record are the caller's. Raises WireError."""
    check_record(record, plan, manifest, spec)
    if len(chunks) != len(record.included):
        raise WireError("output record: wrong number of chunks")
    check_root(record, [digest(c) for c in chunks])
    parsed = tuple(
        plan.output.parse(data, plan.layout, spec.first_chunk + offset) for offset, data in enumerate(chunks)
    )
    check_members(record, works, plan, manifest)
    return SliceOutput(record, parsed, works)


def check_record(record: OutputRecord, plan: RoundPlan, manifest: RunManifest, spec: SliceSpec) -> None:
    """The record alone. Raises WireError.

    `spec`: the slice that was asked for, `spec.reducer` whose output counts by the chain: the slice's own reducer or
    its backup. A backup's output names none.
    """
    expected = (manifest.digest, plan.round.index, spec.index, spec.reducer)
    if (record.manifest, record.round, record.slice, record.public_key) != expected:
        raise WireError("output record: another run, round, slice or reducer")
    if spec.reducer != plan.slices[spec.index].reducer and record.backup != NO_BACKUP:
        raise WireError("output record: a backup's output names another")
    if record.senders != plan.senders:
        raise WireError("output record: not the senders of this round")
    if len(record.included) != spec.last_chunk - spec.first_chunk:
        raise WireError("output record: wrong number of chunks")


def check_root(record: OutputRecord, digests: Sequence[bytes]) -> None:
    """digests: of its chunks. Raises WireError."""
    if merkle_root(digests) != record.output_root:
        raise WireError("output record: the chunks are others")


def combine(plan: RoundPlan, counted: Counted, outputs: Mapping[int, SliceOutput], manifest: RunManifest) -> Combined:
    """Average, next carry and outcome of a round that is applied; `outputs` holds every counted slice."""
    keys = [c.public_key for c in plan.candidates]
    bits = {j: np.asarray(outputs[j].record.included, bool).reshape(-1, len(keys)) for j in counted.slices}
    everything = np.concatenate([bits[j] for j in counted.slices])
    expected = duty.expected_senders(everything)
    lacking = {j: _lacking(rows, expected) for j, rows in bits.items()}
    works = {key: work for j in counted.slices for key, work in outputs[j].works.items()}
    weighed = {key: (sender_weight(work, plan, manifest.average), work.chunk_norms) for key, work in works.items()}
    inflated = {j: _inflated(plan, outputs[j], bits[j], weighed, manifest.average) for j in counted.slices}
    backed_up = tuple(j for j in counted.slices if outputs[j].record.public_key != plan.slices[j].reducer)
    reduced = {spec.reducer: 0.0 for spec in plan.slices}
    for j in set(counted.slices) - set(backed_up):
        reduced[plan.slices[j].reducer] = duty.reduced_share(bits[j], expected, inflated[j])
    included = _where(keys, expected)
    has = {j: 2 * rows.sum(axis=0) >= len(rows) for j, rows in bits.items()}
    outcome = AverageOutcome(
        round=plan.round.index,
        applied=True,
        reason=counted.reason,
        included=included,
        counted=counted.slices,
        backed_up=backed_up,
        num_slices=len(plan.slices),
        credit=dict(zip(keys, duty.credits(everything, np.concatenate([*lacking.values()])), strict=True)),
        reduced=reduced,
        missing={j: _where(keys, ~has[j]) for j in counted.slices if not has[j].all()},
    )
    passed = _passed(plan, outputs, {j: lacking[j] | inflated[j] for j in counted.slices})
    return Combined(passed, next_carry(plan, set(counted.slices) - set(backed_up), included, works, manifest), outcome)


def _lacking(rows: duty.Bits, expected: duty.Bits) -> duty.Bits:
    """[chunk] of one slice: zero for everybody, because it lacks too many of those who are expected."""
    missing = (expected & ~rows).sum(axis=1)
    return np.array([weighting.lacks_senders(int(expected.sum()), int(m)) for m in missing], bool)


def _inflated(
    plan: RoundPlan, made: SliceOutput, rows: duty.Bits, weighed: Mapping[bytes, Weighed], average: AverageSection
) -> duty.Bits:
    """[chunk] of one slice: zero for everybody, because its norm is none that a mean of its senders can have."""
    keys, found = [c.public_key for c in plan.candidates], list[bool]()
    for index, chunk, row in zip(count(plan.slices[made.record.slice].first_chunk), made.chunks, rows, strict=False):
        pairs = [(a, norms[index]) for a, norms in map(weighed.__getitem__, _where(keys, row))]
        found.append(not weighting.passes_gate(chunk.norm(), chunk.rounding_norm(), pairs, average))
    return np.array(found, bool)


def _passed(
    plan: RoundPlan, outputs: Mapping[int, SliceOutput], gated: Mapping[int, duty.Bits]
) -> tuple[Chunk | None, ...]:
    """Chunks of the whole vector; None: zero for everybody."""
    passed: list[Chunk | None] = [None] * plan.layout.num_chunks
    for j, zero in gated.items():
        for index, chunk, gone in zip(count(plan.slices[j].first_chunk), outputs[j].chunks, zero, strict=False):
            passed[index] = None if gone else chunk
    return tuple(passed)


def _where(keys: Sequence[bytes], bits: Iterable[bool]) -> tuple[bytes, ...]:
    return tuple(key for key, bit in zip(keys, bits, strict=True) if bit)


def next_carry(
    plan: RoundPlan,
    reduced: Collection[int],
    included: Sequence[bytes],
    works: Mapping[bytes, WorkRecord],
    manifest: RunManifest,
) -> Carry:
    """tau from the included norms; one more round in the history of failure, and in that of who was included. The
    reducers of all slices but `reduced` failed: of counted ones those that their own reducers reduced."""
    failed = sorted(spec.reducer for spec in plan.slices if spec.index not in reduced)
    norms = [works[key].norm for key in included]
    tau = weighting.next_tau(norms, plan.tau, manifest.average)
    if not math.isfinite(tau):
        raise WireError("clip threshold is not finite")
    ends = {key: works[key].feedback_end for key in included} if plan.uplink.feedback else {}
    return Carry(tau, (*plan.carry.failed, tuple(failed))[-FAILED_ROUNDS:], left.next_left(plan.carry, ends))


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
        reduced={},
        missing={},
    )
