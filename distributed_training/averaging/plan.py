"""What one round looks like to everybody, derived from the chain alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.averaging.codecs.known import output_of, uplink_of
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.merkle import digest
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules import slices as dealt
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Candidate, Carry, Neuron, Roster, Round, SliceSpec

TAG_BYTES = 8


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Seen at the head's s+D, known at finalised s+D; the same on every node that holds the same state."""

    round: Round
    roster: Roster  # as of s-B
    beacon: bytes  # assignment beacon A
    state_root: bytes  # root of the state the round starts from
    tau: float
    carry: Carry
    layout: Layout
    uplink: Codec  # of what senders send
    output: Codec  # of what reducers publish
    voters: tuple[Neuron, ...]  # whose stake decides, and who may ask about the round; as of s-B
    candidates: tuple[Candidate, ...]  # sorted by public key
    slices: tuple[SliceSpec, ...]

    # 8 bytes that two nodes share if they divide the round alike: who is in, with what, and who reduces what.
    tag: bytes = field(init=False, compare=False)
    senders: tuple[bytes, ...] = field(init=False, compare=False, repr=False)  # work-record hashes of the candidates
    _by_key: Mapping[bytes, Candidate] = field(init=False, compare=False, repr=False)
    _slice_by_key: Mapping[bytes, SliceSpec] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        said = [b"%b%b" % (c.public_key, c.record_hash) for c in self.candidates]
        said += [b"%b%d,%d;" % (s.reducer, s.first_chunk, s.last_chunk) for s in self.slices]
        object.__setattr__(self, "tag", digest(b"".join(said))[:TAG_BYTES])
        object.__setattr__(self, "senders", tuple(c.record_hash for c in self.candidates))
        object.__setattr__(self, "_by_key", {c.public_key: c for c in self.candidates})
        object.__setattr__(self, "_slice_by_key", {s.reducer: s for s in self.slices})

    def candidate(self, public_key: bytes) -> Candidate | None:
        return self._by_key.get(public_key)

    def slice_of(self, public_key: bytes) -> SliceSpec | None:
        """The slice this hotkey reduces, if any."""
        return self._slice_by_key.get(public_key)


def layout_of(manifest: RunManifest, num_coords: int) -> Layout:
    return Layout(num_coords, manifest.average.chunk_coords, manifest.average.block_coords)


def make_plan(
    manifest: RunManifest,
    round_: Round,
    *,
    roster: Roster,
    at_commit: Roster,
    beacon: bytes,
    state_root: bytes,
    carry: Carry,
    num_coords: int,
) -> RoundPlan:
    """roster as of s-B, at_commit as of s+D, the rest from the state the round starts from."""
    layout = layout_of(manifest, num_coords)
    members = membership.candidates(round_, roster, at_commit, manifest)
    ordered = dealt.reducers(members, dealt.earned(roster), carry, beacon, manifest.average)
    return RoundPlan(
        round=round_,
        roster=roster,
        beacon=beacon,
        state_root=state_root,
        tau=carry.tau,
        carry=carry,
        layout=layout,
        uplink=uplink_of(manifest.average),
        output=output_of(manifest.average),
        voters=voters(manifest, roster),
        candidates=members,
        slices=dealt.slices(ordered, layout.num_chunks, manifest.average),
    )
