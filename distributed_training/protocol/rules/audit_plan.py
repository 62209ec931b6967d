"""Who audits whom, how deep, and which chunks are asked for (protocol section 7).

Everything follows from a block hash that is known only after work and outputs are on chain, and from public keys:
validator and miner compute the same plan, so the miner can refuse a query that the plan does not hold.

Here every validator audits every miner in every round. Budgets and shares by stake come later; the order of the
tasks already is the order of priority, so a budget will only cut the tail.

Hash: blake2b-256. Integers are little-endian. A key is a 32-byte sr25519 public key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import WorkRecord


@dataclass(frozen=True, slots=True)
class Depth:
    """How many steps to replay from step 0. `full`: all, and the final vector is compared with the committed one."""

    length: int
    full: bool


@dataclass(frozen=True, slots=True)
class AuditTask:
    """One miner to look at: a train query of `depth` and an integrity query for `chunks` of its wire bytes."""

    uid: int
    public_key: bytes
    depth: Depth
    chunks: tuple[int, ...]  # distinct, ascending


def audit_beacon(block_hash: bytes, round_index: int) -> bytes:
    """S = H("audit" | hash(s+X+B) | round as u32), 32 bytes. Raises ValueError for a hash that is not 32 bytes."""
    if len(block_hash) != 32:
        raise ValueError(f"a block hash has 32 bytes, not {len(block_hash)}")
    return _hash(b"audit", block_hash, round_index.to_bytes(4, "little"))


def audit_depth(beacon: bytes, validator: bytes, miner: bytes, steps: int, audit: AuditSection) -> Depth:
    """How deep `validator` replays `miner`, who claims `steps` steps.

    Harmonic: length = min(steps, max(1, floor(t0 / u))), u uniform in (0, 1], so P(length >= t) = min(1, t0 / t) and
    no step is safe (facts section 2.5). With probability `full_share` the whole round is replayed instead.
    A claim of 0 steps gives length 0; who accepts a record has checked steps <= max_steps.
    Raises ValueError for negative steps.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative: {steps}")
    digest = _pair(b"depth", beacon, validator, miner)
    if _unit(digest[8:16]) <= audit.full_share:
        return Depth(steps, True)
    return Depth(min(steps, max(1, int(audit.t0 / _unit(digest[:8])))), False)


def probe_chunks(beacon: bytes, validator: bytes, miner: bytes, num_chunks: int, count: int) -> tuple[int, ...]:
    """The chunks of `miner`'s wire bytes that `validator` may ask for: min(count, num_chunks) distinct ones, ascending.

    Every subset of that size is equally likely (Floyd's sampling with unbiased draws).
    """
    words = _words(_pair(b"probe", beacon, validator, miner))
    chosen: set[int] = set()
    for last in range(max(0, num_chunks - count), num_chunks):
        drawn = _below(words, last + 1)
        chosen.add(last if drawn in chosen else drawn)
    return tuple(sorted(chosen))


def plan(
    beacon: bytes,
    validator: bytes,
    miners: Sequence[WorkRecord],
    cards: Mapping[bytes, ScoreCard],
    audit: AuditSection,
) -> tuple[AuditTask, ...]:
    """One task for every work record, most urgent first.

    Order: miners without a passed audit, then more soft failures first, then less evidence first (long unaudited),
    then by a hash nobody chooses. `cards` is keyed by public key; the order of `miners` does not matter.
    """

    def urgency(record: WorkRecord) -> tuple[bool, float, float, bytes]:
        order = _pair(b"order", beacon, validator, record.public_key)
        card = cards.get(record.public_key)
        if card is None or not card.passed_audit:
            return (False, 0.0, 0.0, order)
        return (True, -card.fails, card.passes, order)

    return tuple(_task(beacon, validator, record, audit) for record in sorted(miners, key=urgency))


def _task(beacon: bytes, validator: bytes, record: WorkRecord, audit: AuditSection) -> AuditTask:
    key = record.public_key
    return AuditTask(
        uid=record.uid,
        public_key=key,
        depth=audit_depth(beacon, validator, key, record.steps, audit),
        chunks=probe_chunks(beacon, validator, key, len(record.chunk_norms), audit.probe_chunks),
    )


def _hash(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=32).digest()


def _pair(tag: bytes, beacon: bytes, validator: bytes, miner: bytes) -> bytes:
    # Fixed lengths keep the concatenation unambiguous: no two pairs can share a digest by shifting bytes.
    if not len(beacon) == len(validator) == len(miner) == 32:
        raise ValueError("beacon and public keys have 32 bytes each")
    return _hash(tag, beacon, validator, miner)


def _unit(eight: bytes) -> float:
    """Uniform in (0, 1], exact in float64: the upper 53 bits of a u64."""
    return ((int.from_bytes(eight, "little") >> 11) + 1) / 2**53


def _words(seed: bytes) -> Iterator[int]:
    """Endless stream of u64: blake2b-256(seed | counter as u32), four words each."""
    counter = 0
    while True:
        block = _hash(seed, counter.to_bytes(4, "little"))
        for at in range(0, 32, 8):
            yield int.from_bytes(block[at : at + 8], "little")
        counter += 1


def _below(words: Iterator[int], bound: int) -> int:
    """Uniform in [0, bound): words above the largest multiple of `bound` are skipped."""
    limit = 2**64 - 2**64 % bound
    return next(word for word in words if word < limit) % bound
