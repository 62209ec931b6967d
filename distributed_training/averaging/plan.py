"""What one round looks like to everybody, derived from the chain alone."""

from __future__ import annotations

from dataclasses import dataclass

from distributed_training.averaging.codecs.base import Layout
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules import membership
from distributed_training.protocol.rules import slices as dealt
from distributed_training.protocol.rules.voters import voters
from distributed_training.protocol.types import Candidate, Carry, Neuron, Roster, Round, SliceSpec


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Known at finalised s+D; the same on every node that holds the same state."""

    round: Round
    roster: Roster  # as of s-B
    beacon: bytes  # assignment beacon A
    state_root: bytes  # root of the state the round starts from
    tau: float
    carry: Carry
    layout: Layout
    voters: tuple[Neuron, ...]  # whose stake decides, and who may ask about the round; as of s-B
    candidates: tuple[Candidate, ...]  # sorted by public key
    slices: tuple[SliceSpec, ...]

    def candidate(self, public_key: bytes) -> Candidate | None:
        return next((c for c in self.candidates if c.public_key == public_key), None)

    def slice_of(self, public_key: bytes) -> SliceSpec | None:
        """The slice this hotkey reduces, if any."""
        return next((s for s in self.slices if s.reducer == public_key), None)


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
        voters=voters(manifest, roster),
        candidates=members,
        slices=dealt.slices(ordered, layout.num_chunks, manifest.average),
    )
