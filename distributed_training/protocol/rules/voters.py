"""Whose stake counts in a round (protocol section 3).

On a chain that pays, owner, miners and strangers hold permits too: their stake neither decides nor weighs against those
who do validate this run.
"""

from __future__ import annotations

from math import fsum

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role, Roster

RECENT_ROUNDS = 4


def validates(neuron: Neuron, manifest: RunManifest, block: int) -> bool:
    """Is this, as of `block`, a validator of the run? It has a permit, and its commitment is a validator's of this run,
    with or without a map, written in the last four rounds; at any time while the run is younger than that."""
    said, timing = neuron.commitment, manifest.timing
    if not neuron.may_validate or said is None or said.role is not Role.VALIDATOR or said.run != manifest.tag:
        return False
    since = block - RECENT_ROUNDS * timing.length
    return since < timing.first_block - timing.roster_lead or (neuron.commitment_block or 0) > since


def voters(manifest: RunManifest, roster: Roster) -> tuple[Neuron, ...]:
    """The validators whose stake decides in a round; roster as of its s-B. Nobody's does where all of them together
    hold less than `average.min_voter_share` of the permit stake: else a grain would decide while the others are away.
    """
    found = tuple(n for n in roster.neurons if validates(n, manifest, roster.block.number))
    permits = fsum(n.stake for n in roster.neurons if n.may_validate)
    return found if fsum(n.stake for n in found) >= manifest.average.min_voter_share * permits else ()
