"""Whether a run fits the subnet that it is made for, by what the chain says of that. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.quota import quota_problem, uids_problem
from distributed_training.protocol.rules.scoring import vested

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
    problem = uids_problem(manifest.max_uids, facts.max_uids)
    problem = problem or quota_problem(t.length, facts.tempo, facts.commitment_bytes)
    if problem is not None:
        raise ConfigError(f"run manifest: {problem}")
    counts = _first_paid(manifest)
    immunity, needed = facts.immunity_blocks, pay_blocks(manifest, facts, counts)
    if immunity is not None and immunity < needed:
        raise ConfigError(
            f"timing.length {t.length} is too long: a newcomer may wait {needed} blocks for its first pay "
            f"({counts + 1} rounds, an epoch, the reveal), and subnet {facts.netuid} protects its place for {immunity}"
        )


def pay_blocks(manifest: RunManifest, facts: SubnetFacts, rounds: int) -> int:
    """From a registration to the end of the epoch that pays for its first `rounds` rounds: one may just have begun, the
    last is audited in the one after, and weights count when the epoch ends, or when they are revealed."""
    reveal = (facts.reveal_epochs or 0) if facts.commit_reveal else 0
    return (1 + rounds) * manifest.timing.length + manifest.timing.map + (1 + reveal) * facts.tempo


def rounds_paid(manifest: RunManifest, facts: SubnetFacts, blocks: int) -> int:
    """How many rounds of a newcomer its pay counts so many blocks after it registered, if it is unlucky."""
    return max(0, (blocks - pay_blocks(manifest, facts, 0)) // manifest.timing.length)


def _first_paid(manifest: RunManifest) -> int:
    """Rounds until so much of a newcomer's work has vested that it is not cut off beside an equal."""
    scoring, count = manifest.scoring, 1
    while vested([1.0] * count, scoring.vesting_rounds) < scoring.cutoff:
        count += 1
    return count


def subnet_notes(manifest: RunManifest, facts: SubnetFacts) -> list[str]:
    """What the owner should know of the subnet, a line each."""
    notes = [f"subnet {facts.netuid} ({facts.name}), at block {facts.block}: {facts.pays}"]
    notes.append(f"a registration costs {facts.price}; {facts.num_uids} of {facts.max_uids} uids are taken")
    wait = pay_blocks(manifest, facts, _first_paid(manifest))
    notes.append(
        f"who registers waits at most {wait} blocks, {wait * facts.block_s / 3600:.1f} hours, for its first pay beside "
        "miners who have been there for long"
    )
    t, limit = manifest.timing, facts.weights_rate_limit
    if limit is not None and limit > t.length:
        notes.append(f"weights may be set every {limit} blocks only, and a round has {t.length}: scores are paid later")
    if facts.immunity_blocks is not None:
        notes.append(_immunity(manifest, facts, facts.immunity_blocks))
    return notes


def _immunity(manifest: RunManifest, facts: SubnetFacts, immunity: int) -> str:
    vesting = manifest.scoring.vesting_rounds
    level = pay_blocks(manifest, facts, vesting)
    line = f"a newcomer's place is protected for {immunity} blocks, and its work counts in full after {level} at most"
    if immunity >= level:
        return f"{line}: an equal of those who are there is not the lowest then"
    share = vested([1.0] * min(rounds_paid(manifest, facts, immunity), vesting), vesting)
    return (
        f"{line}: TOO SHORT, an honest equal stands at {100 * share:.0f} % of the others when it ends, and a full "
        f"subnet replaces the lowest: the owner can set immunity_period to {level} or more"
    )
