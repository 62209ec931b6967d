"""A miner's side of a round before anything is sent: encode, chunk, commit; and the check of others' claims."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from distributed_training.averaging.codecs.base import Chunk, Codec, Layout, Vector
from distributed_training.averaging.plan import RoundPlan
from distributed_training.chain.base import Verify
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import Tree, digest
from distributed_training.protocol.types import NO_ROOT, Candidate, Signed, WorkRecord
from distributed_training.protocol.wire import decode_work, record_hash, signing_message


@dataclass(frozen=True)
class Contribution:
    """An encoded vector, chunk by chunk, with everything a work record says of it."""

    chunks: tuple[bytes, ...]
    digests: tuple[bytes, ...]
    norms: tuple[float, ...]

    @property
    def wire_root(self) -> bytes:
        return self._tree.root

    def show(self, places: Collection[int]) -> bytes:
        """The digests of these chunks, and what leads from them to the wire root (`merkle.read_shown`)."""
        return self._tree.show(places)

    @cached_property
    def _tree(self) -> Tree:
        """Kept: every reducer and every voter is shown another part of the same tree."""
        return Tree(self.digests)


def encode_contribution(delta: Vector, layout: Layout, codec: Codec) -> Contribution:
    """delta: fp32 [d], theta_r - theta_{r,H}. Raises ValueError for a non-finite number."""
    encoder = codec.encoder(layout)
    return contribution_of(encoder.encode(delta[slice(*layout.coords(c))]) for c in range(layout.num_chunks))


def from_chunks(chunks: Sequence[bytes], layout: Layout, codec: Codec) -> Contribution:
    """Digests and exact norms of already encoded chunks. Raises WireError for malformed ones."""
    return contribution_of(codec.parse(data, layout, c) for c, data in enumerate(chunks))


def contribution_of(chunks: Iterable[Chunk]) -> Contribution:
    """Of all chunks of a vector, in order; each is asked for when the one before it is done."""
    made = [(chunk.data, digest(chunk.data), chunk.norm()) for chunk in chunks]  # each while it is in the cache
    return Contribution(tuple(m[0] for m in made), tuple(m[1] for m in made), tuple(m[2] for m in made))


def split_wire(data: bytes, layout: Layout, codec: Codec) -> tuple[bytes, ...]:
    """The concatenation of all chunks, cut again. Raises WireError for another length."""
    *cuts, end = accumulate((codec.chunk_bytes(layout, c) for c in range(layout.num_chunks)), initial=0)
    if len(data) != end:
        raise WireError(f"wire bytes: {len(data)}, {end} expected")
    return tuple(data[a:b] for a, b in pairwise((*cuts, end)))


def _starts(plan: RoundPlan, candidate: Candidate) -> tuple[bytes, ...]:
    return (NO_ROOT, plan.carry.left_by(candidate.public_key)) if plan.uplink.feedback else (NO_ROOT,)


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
        (record.codec == plan.uplink.id, "another codec"),
        ((record.feedback_end != NO_ROOT) is bool(plan.uplink.feedback), "not what its codec leaves out"),
        (record.feedback_start in _starts(plan, candidate), "feedback that is not what its last included vector left"),
        (can_have_begun(record, overlap=manifest.timing.overlap), "training that began elsewhere than it can have"),
        (len(record.chunk_norms) == plan.layout.num_chunks, "wrong number of chunk norms"),
    )
    for ok, problem in expected:
        if not ok:
            raise WireError(f"work record: {problem}")
    return record


def can_have_begun(record: WorkRecord, *, overlap: bool) -> bool:
    """Can its training have begun and been shifted as it says? At whose vector it did is for audits to see."""
    if record.began_at == NO_ROOT:
        return record.shift_step == 0
    return overlap and record.round > 0 and record.shift_step <= record.steps
