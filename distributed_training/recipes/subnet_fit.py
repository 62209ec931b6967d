"""Whether a run fits the subnet that it is made for, by what the chain says of that. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.quota import quota_problem

if TYPE_CHECKING:
    from distributed_training.chain.subnet import SubnetFacts  # alone: it loads bittensor


def check_start(manifest: RunManifest, facts: SubnetFacts) -> None:
    """Raises ConfigError for a new run that begins before anybody can be there."""
    t = manifest.timing
    if t.first_block - t.roster_lead <= facts.block:
        raise ConfigError(
            f"timing.first_block {t.first_block} is too early: the chain is at block {facts.block}, and the roster of "
            f"round 0 is read {t.roster_lead} blocks before; give --in 2h, for instance"
        )


def check_subnet(manifest: RunManifest, facts: SubnetFacts) -> None:
    """Raises ConfigError, in one line, for a run that could not be there."""
    t = manifest.timing
    if facts.max_uids > manifest.max_uids:
        raise ConfigError(
            f"max_uids {manifest.max_uids} is too small: subnet {facts.netuid} has {facts.max_uids} uids, and those "
            "beyond would get no pages"
        )
    problem = quota_problem(t.length, facts.tempo, facts.commitment_bytes)
    if problem is not None:
        raise ConfigError(f"run manifest: {problem}")
    immunity, needed = facts.immunity_blocks, first_pay_blocks(manifest, facts)
    if immunity is not None and immunity < needed:
        raise ConfigError(
            f"timing.length {t.length} is too long: a newcomer may wait {needed} blocks for its first pay (two rounds, "
            f"an epoch, the reveal), and subnet {facts.netuid} protects its place for {immunity}"
        )


def first_pay_blocks(manifest: RunManifest, facts: SubnetFacts) -> int:
    """From a registration to the end of the epoch that first pays it: a round may just have begun, the next one is
    audited in the one after, and weights count when the epoch ends, or when they are revealed."""
    reveal = (facts.reveal_epochs or 0) if facts.commit_reveal else 0
    return 2 * manifest.timing.length + manifest.timing.map + (1 + reveal) * facts.tempo


def subnet_notes(manifest: RunManifest, facts: SubnetFacts) -> list[str]:
    """What the owner should know of the subnet, a line each."""
    notes = [f"subnet {facts.netuid} ({facts.name}), at block {facts.block}: {facts.pays}"]
    notes.append(f"a registration costs {facts.price}; {facts.num_uids} of {facts.max_uids} uids are taken")
    wait = first_pay_blocks(manifest, facts)
    notes.append(
        f"who registers waits at most {wait} blocks, {wait * facts.block_s / 3600:.1f} hours, for its first pay"
    )
    t, limit = manifest.timing, facts.weights_rate_limit
    if limit is not None and limit > t.length:
        notes.append(f"weights may be set every {limit} blocks only, and a round has {t.length}: scores are paid later")
    if facts.immunity_blocks is not None:
        rounds = facts.immunity_blocks / t.length
        share = 1 - 2 ** (-rounds / manifest.scoring.steps_half_life)
        notes.append(
            f"a newcomer's place is protected for {facts.immunity_blocks} blocks, {rounds:.0f} rounds, which bring it "
            f"to {100 * share:.0f} % of the score of an equal that was there before"
        )
    return notes
