"""Who audits whom, how deep, and which chunks are asked for (protocol section 7).

Everything follows from a block hash that is known only after work and outputs are on chain, and from public keys:
validator and miner compute the same plan, so the miner can refuse a query that the plan does not hold.

Validators take turns by their stake, so that all of them together replay as much however many they are. The order of
the tasks is the order of priority.

Hash: blake2b-256. Integers are little-endian. A key is a 32-byte sr25519 public key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import fsum

from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import Neuron, WorkRecord

FULL_SAMPLE = 64  # chunks whose feedback buffers a full audit looks at: by default 34 MB of them
SAMPLE = 4  # chunks of which every look has to know where the vector points: a million coordinates


@dataclass(frozen=True, slots=True)
class Depth:
    """How many steps to replay from step 0; 0: none. `full`: all, and the final vector is compared with the committed
    one."""

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


def voter_share(voters: Sequence[Neuron], public_key: bytes) -> float:
    """The part of the voters' stake that is this validator's, 0..1: its part of the audits. 0 for who is no voter;
    equal parts where nobody has any stake."""
    total = fsum(n.stake for n in voters)
    own = [n.stake for n in voters if n.public_key == public_key]
    return fsum(own) / total if total > 0.0 else len(own) / max(1, len(voters))


def audit_depth(
    beacon: bytes,
    validator: bytes,
    miner: bytes,
    steps: int,
    audit: AuditSection,
    share: float,
    *,
    proven: bool = True,
) -> Depth:
    """How deep `validator`, who holds `share` of the voters' stake, replays `miner`, who claims `steps` steps.

    Validators take turns by stake: it is this one's with probability `share`. Whose turn it is draws a harmonic depth,
    floor(t0 / u), u uniform in (0, 1], t0 = max(1, depth_share * steps): all validators together reach step t with
    probability about min(1, depth_share * steps / t), so no step is safe, and the cost does not grow with their number.
    Full is an audit that this takes to the end, and a share of the others, share * full_share. A miner computes that
    for itself; whether it is `proven`, only the validator: of who is not, step 0 is replayed in every round, and turns
    come newcomer_factor times as often, at most in each round; what is left of that factor makes them deeper.
    Length 0: not looked at in this round, or nothing was claimed; who accepts a record has checked steps <= max_steps.
    Raises ValueError for negative steps.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative: {steps}")
    digest = _pair(b"depth", beacon, validator, miner)
    deep, full, turn = (_unit(digest[at : at + 8]) for at in (0, 8, 16))
    t0 = max(1.0, audit.depth_share * steps)
    ends = turn <= share and int(t0 / deep) >= steps
    if steps > 0 and (ends or full <= share * audit.full_share):
        return Depth(steps, True)
    often = share if proven else share * audit.newcomer_factor
    length = int(t0 * max(1.0, often) / deep) if turn <= often else 0
    return Depth(min(steps, max(int(not proven), length)), False)


def reach(step: int, steps: int, audit: AuditSection, share: float, *, proven: bool = True) -> float:
    """The probability that `audit_depth` of such a claim is `step` or more; step from 1 to steps."""
    often = share if proven else share * audit.newcomer_factor
    prefix = min(1.0, often) * min(1.0, max(1.0, audit.depth_share * steps) * max(1.0, often) / step)
    prefix = 1.0 if step == 1 and not proven else prefix
    return prefix + (1.0 - prefix) * share * audit.full_share


def could_find(
    beacon: bytes, validator: bytes, miner: bytes, steps: int, audit: AuditSection, share: float, at: int, whole: bool
) -> bool:
    """Can a look of `validator` have come to step `at`, counted from 1, or to the vector (`whole`)? Whom it has proven
    is its own affair: a newcomer is looked at as deep as anybody."""
    drawn = audit_depth(beacon, validator, miner, steps, audit, share, proven=False)
    return drawn.full if whole else at <= drawn.length


def proven(card: ScoreCard | None, claimed: float) -> bool:
    """Has a miner that claims `claimed` of the token cap, 0..1, earned at least half of that? A newcomer has not, nor
    who was away, nor who worked little before it claims much."""
    return card is not None and card.passed_audit and 2.0 * card.steps >= claimed


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


def feedback_chunks(
    beacon: bytes, validator: bytes, miner: bytes, num_chunks: int, drawn: Sequence[int], *, full: bool
) -> tuple[int, ...]:
    """The chunks whose feedback buffers go with a look at `miner`'s vector, `drawn` the probe's: a sample, because they
    are fp32. Nobody knows them before the buffers' roots are on chain; ascending."""
    return probe_chunks(beacon, validator, miner, num_chunks, FULL_SAMPLE) if full else tuple(drawn[:SAMPLE])


def plan(
    beacon: bytes,
    validator: bytes,
    miners: Sequence[WorkRecord],
    cards: Mapping[bytes, ScoreCard],
    audit: AuditSection,
    share: float,
    token_cap: int,
) -> tuple[AuditTask, ...]:
    """One task for every work record, most urgent first.

    Order: miners without a passed audit, then more soft failures first, then less evidence first (long unaudited),
    then by a hash nobody chooses. `cards` is keyed by public key; the order of `miners` does not matter.
    `share`: of the voters' stake, this validator's.
    """

    def urgency(record: WorkRecord) -> tuple[bool, float, float, bytes]:
        order = _pair(b"order", beacon, validator, record.public_key)
        card = cards.get(record.public_key)
        if card is None or not card.passed_audit:
            return (False, 0.0, 0.0, order)
        return (True, -card.fails, card.passes, order)

    def task(record: WorkRecord) -> AuditTask:
        key, claimed = record.public_key, min(record.tokens, token_cap) / token_cap
        known = proven(cards.get(key), claimed)
        return AuditTask(
            uid=record.uid,
            public_key=key,
            depth=audit_depth(beacon, validator, key, record.steps, audit, share, proven=known),
            chunks=probe_chunks(beacon, validator, key, len(record.chunk_norms), audit.probe_chunks),
        )

    return tuple(task(record) for record in sorted(miners, key=urgency))


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
