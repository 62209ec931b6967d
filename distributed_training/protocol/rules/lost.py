"""A counted slice that nobody can give becomes zero for everybody, by what the chain alone says (protocol section 3).

A validator that cannot complete a round stays with it and says so again after its s+Y: a map whose bit is clear. At the
s+Y of a later round these are weighed against the validators that have gone on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import fsum

from distributed_training.protocol.rules.membership import Counted, decode_slice_map, said
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import Neuron, Role, Roster, Round

VOID = "a slice of a former round was lost"  # why the rounds up to the one in which that is decided are discarded


@dataclass(frozen=True, slots=True)
class Settling:
    """A round whose slices were counted, and may be lost still."""

    round: Round
    num_slices: int
    counted: Counted


@dataclass(frozen=True, slots=True)
class Later:
    """A round after that one: whose stake decides in it, and the chain as of its s+Y."""

    round: Round
    voters: Sequence[Neuron]
    at_map: Roster


def lost_slices(former: Settling, later: Later, average: AverageSection) -> tuple[int, ...] | None:
    """Counted slices that are lost as of the later round's s+Y; () = none of them, for good; None = not decided yet.

    Lost: validators with at least `min_map_share` of the stake, and with more than those that have gone on, have
    written after the former round's s+Y that they lack it. Decided otherwise: half of the stake has gone on.
    """
    lacking, gone = dict.fromkeys(former.counted.slices, 0.0), 0.0
    for neuron in later.voters:
        now = said(neuron, later.at_map, former.round.run)
        if now is None or now[0].role is not Role.VALIDATOR or now[0].second is None or now[0].second_round is None:
            continue
        if now[0].second_round > former.round.index:
            gone += neuron.stake
        elif now[0].second_round == former.round.index and now[1] > former.round.map_block:
            held = decode_slice_map(now[0].second, former.num_slices)
            lacking |= {j: stake + neuron.stake for j, stake in lacking.items() if not held[j]}
    total = fsum(n.stake for n in later.voters)
    lost = tuple(j for j, stake in lacking.items() if stake > gone and stake >= average.min_map_share * total)
    return lost or (() if 0 < total <= 2 * gone else None)


def without(counted: Counted, lost: Collection[int], average: AverageSection) -> Counted:
    """What is left of a round that lost slices: the others, or nothing where they are too few."""
    left = tuple(j for j in counted.slices if j not in lost)
    if len(left) < average.min_counted:
        return Counted((), f"slices {sorted(lost)} are lost and {len(left)} count, {average.min_counted} needed", {})
    return Counted(left, counted.reason, {j: counted.holders[j] for j in left})
