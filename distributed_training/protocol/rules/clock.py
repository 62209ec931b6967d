"""Blocks to rounds and phases (protocol section 3). A block is the only clock that nodes share."""

from __future__ import annotations

from distributed_training.protocol.manifest import TimingSection
from distributed_training.protocol.types import Phase, Round


def phase(round: Round, block: int) -> Phase:
    """The phase of `round` that `block` falls in. Every named block is the last of its phase.

    A block at or after `end_block` still counts as SETTLE: a node that is late settles late. Raises ValueError
    for a block before `start_block`.
    """
    if block < round.start_block:
        raise ValueError(f"block {block} is before round {round.index}, which starts at {round.start_block}")
    if block <= round.train_end_block:
        return Phase.TRAIN
    if block <= round.commit_block:
        return Phase.COMMIT
    if block <= round.output_block:
        return Phase.AVERAGE
    if block <= round.map_block:
        return Phase.MAP
    return Phase.SETTLE


def round_at(timing: TimingSection, block: int) -> int | None:
    """Index of the round whose [start, end) holds `block`; None before round 0."""
    if block < timing.first_block:
        return None
    return (block - timing.first_block) // timing.length


def next_round(timing: TimingSection, block: int) -> int:
    """Index of the first round whose roster block is at or after `block`: a node ready now can be in that one."""
    behind = block + timing.roster_lead - timing.first_block
    return max(0, -(-behind // timing.length))


def quiet_from(timing: TimingSection, block: int) -> int:
    """The first block from `block` on at which no round needs what a node has on chain: after s+Y, before the next s-B.

    Who changes its peer key then costs no round anything, and takes part in the next one.
    """
    index = max(0, -(-(block - timing.map - timing.first_block) // timing.length))
    start = timing.first_block + index * timing.length
    return block if block < start - timing.roster_lead else start + timing.map + 1


def weights_due(head: int, last_update: int, rate_limit: int) -> bool:
    """Would the chain take new weights now? It accepts when head - last_update >= rate_limit (blocks).

    `last_update` is 0 for a uid that never had any, which is always accepted; registration sets it to the
    registration block, so a fresh validator waits once (facts of the chain: refusal `rate_limited`).
    """
    return last_update == 0 or head - last_update >= rate_limit


def bulk_timeout_s(timing: TimingSection, block_s: float) -> float:
    """How long one transfer of bulk bytes (a slice, a log, a full probe) may take: a twelfth of a round, in seconds."""
    return timing.length * block_s / 12


def stall_timeout_s(timing: TimingSection, block_s: float) -> float:
    """How long a peer may make no progress before we turn to another, in seconds.

    A third of the time that reducers have for their senders, (s+D+f, s+X-R): a reducer that freezes is found out
    while there is time left to send its slice to the backup.
    """
    return (timing.output - timing.reduce_margin - timing.commit - timing.finality) * block_s / 3
