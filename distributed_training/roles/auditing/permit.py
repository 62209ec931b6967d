"""What a validator is told whose vote does not count: the chain gives permits out, by stake, once an epoch."""

from __future__ import annotations

import logging

from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.voters import RECENT_ROUNDS, validates, voters
from distributed_training.protocol.types import Neuron, Roster

log = logging.getLogger(__name__)


def permit_lacks(roster: Roster, me: Neuron) -> str | None:
    """Why this hotkey may not validate and what would help, in one line; None if it may."""
    if me.may_validate:
        return None
    holders = [n.stake for n in roster.neurons if n.may_validate]
    rank = 1 + sum(n.stake > me.stake for n in roster.neurons)
    least = f"the least stake that has one is {min(holders):,.1f}" if holders else "nobody has one"
    return (
        f"uid {me.uid} has no permit to validate, so its weights and maps do not count and miners send it no logs: the "
        f"chain gives permits to the hotkeys with most stake at the end of each epoch; this one has {me.stake:,.1f} "
        f"(rank {rank} of {len(roster.neurons)}), {least}"
    )


def vote_lacks(manifest: RunManifest, roster: Roster, me: Neuron) -> str | None:
    """Why its vote does not count in the round of this roster; None if it does (protocol section 3)."""
    if (lacks := permit_lacks(roster, me)) is not None:
        return lacks
    if not validates(me, manifest, roster.block.number):
        return f"uid {me.uid} had said nothing of this run for {RECENT_ROUNDS} rounds, so its vote does not count"
    if not voters(manifest, roster):
        least = manifest.average.min_voter_share
        return f"the validators of this run hold less than {least:g} of all permit stake, so nobody's vote counts"
    return None


class PermitWatch:
    """Says in each round whether our vote counts, and when that changes."""

    def __init__(self, manifest: RunManifest) -> None:
        self._manifest = manifest
        self._had: bool | None = None  # in the former round; None: no round yet

    def saw(self, round_index: int, roster: Roster, public_key: bytes) -> None:
        """roster: of the round."""
        me = roster.by_public_key(public_key)
        lacks = None if me is None else vote_lacks(self._manifest, roster, me)
        had, self._had = self._had, lacks is None
        if lacks is None and had is False:
            log.info("round %d: this validator's vote counts now", round_index)
        elif lacks is not None and had is not False:
            log.warning("round %d: %s", round_index, lacks if had is None else f"the vote is lost: {lacks}")
        elif lacks is not None:
            log.info("round %d: followed only: our vote does not count yet", round_index)
