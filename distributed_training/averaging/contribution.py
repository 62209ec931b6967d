"""A miner's side of a round before anything is sent: encode, chunk, commit; and the check of others' claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from distributed_training.averaging.codecs.base import Layout, Vector
from distributed_training.averaging.codecs.int8 import INT8_CODEC, Chunk, Encoder, parse_chunk
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Verify
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest, merkle_root
from distributed_training.protocol.types import Candidate, Signed, WorkRecord
from distributed_training.protocol.wire import decode_work, record_hash, signing_message


@dataclass(frozen=True, slots=True)
class Contribution:
    """An encoded vector, chunk by chunk, with everything a work record says of it."""

    chunks: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    norms: tuple[float, ...]

    @property
    def wire_root(self) -> bytes:
        return merkle_root(self.digests)


def encode_contribution(delta: Vector, layout: Layout) -> Contribution:
    """delta: fp32 [d], theta_r - theta_{r,H}. Raises ValueError for a non-finite number."""
    encoder = Encoder(layout)
    return _of(encoder.encode(delta[slice(*layout.coords(c))]) for c in range(layout.num_chunks))


def from_chunks(chunks: Sequence[bytes], layout: Layout) -> Contribution:
    """Digests and exact norms of already encoded chunks. Raises WireError for malformed ones."""
    return _of(parse_chunk(data, layout, c) for c, data in enumerate(chunks))


def _of(chunks: Iterable[Chunk]) -> Contribution:
    made = [(chunk.data, digest(chunk.data), chunk.norm()) for chunk in chunks]  # each while it is in the cache
    return Contribution(tuple(m[0] for m in made), tuple(m[1] for m in made), tuple(m[2] for m in made))


def split_wire(data: bytes, layout: Layout) -> tuple[bytes, ...]:
    """The concatenation of all chunks, cut again. Raises WireError for another length."""
    if len(data) != layout.wire_bytes:
        raise WireError(f"wire bytes: {len(data)}, {layout.wire_bytes} expected")
    cuts = accumulate((layout.chunk_bytes(c) for c in range(layout.num_chunks)), initial=0)
    return tuple(data[a:b] for a, b in pairwise(cuts))


def check_work(
    signed: Signed, candidate: Candidate, plan: RoundPlan, manifest: RunManifest, verify: Verify
) -> WorkRecord:
    """A candidate's record against its hash on chain, its signature and the round. Raises WireError with the reason."""
    if record_hash(signed.body) != candidate.record_hash:
        raise WireError("work record: not the one whose hash is on chain")
    if not verify(candidate.public_key, signing_message(signed.body), signed.signature):
        raise WireError("work record: bad signature")
    record = decode_work(signed.body)
    expected = (
        (record.manifest == manifest.digest, "another manifest"),
        (record.round == plan.round.index, "another round"),
        ((record.uid, record.public_key) == (candidate.uid, candidate.public_key), "another miner"),
        (record.state_root == plan.state_root, "another state root"),
        (1 <= record.steps <= manifest.inner.max_steps, "impossible number of steps"),
        (record.tokens == record.steps * manifest.tokens_per_step, "tokens do not follow from steps"),
        (record.codec == INT8_CODEC, "unknown codec"),
        (len(record.chunk_norms) == plan.layout.num_chunks, "wrong number of chunk norms"),
    )
    for ok, problem in expected:
        if not ok:
            raise WireError(f"work record: {problem}")
    return record
