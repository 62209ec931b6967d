"""Blocks to rounds and phases (protocol section 3). A block is the only clock that nodes share."""

from __future__ import annotations

from enum import Enum

from distributed_training.protocol.sections import TimingSection
from distributed_training.protocol.types import Round, SubnetParams

EPOCH_MARGIN = 3  # blocks from a submission to its inclusion, at most


class Phase(Enum):
    """Where a block falls inside its round (protocol section 3)."""

    TRAIN = "train"
    COMMIT = "commit"
    AVERAGE = "average"
    MAP = "map"
    SETTLE = "settle"


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


def averaged_at(timing: TimingSection, block: int) -> int | None:
    """Index of the newest round whose s+D is over at `block`; None before the first one's."""
    return round_at(timing, block - timing.commit)


def over(timing: TimingSection, index: int) -> int:
    """The block at which round `index` lies behind every node: the start of the next one, or, where rounds overlap and
    it is settled later than that, when it is settled."""
    return timing.first_block + index * timing.length + max(timing.length, timing.map + timing.finality)


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


def weights_due(head: int, last_update: int, params: SubnetParams) -> bool:
    """Should new weights be sent now? What counts is the row that stands when the epoch ends, so a set is kept for the
    epoch's closing blocks; the sets before it are for the case that those are missed, at most four in an epoch.

    The chain takes weights when head - last_update >= the rate limit, with commit-reveal counted from the commit.
    `last_update` is 0 for a uid that never had any, which is always accepted; registration sets it to the registration
    block, so a fresh validator waits once. Nothing is sent so late that it might land in the next epoch.
    """
    since, end, closing = head - last_update, params.next_epoch_block, closing_block(params)
    if last_update and since < params.weights_rate_limit:
        return False
    if end is None or closing is None:
        return True
    if head >= closing:
        return head < end - EPOCH_MARGIN and last_update < closing
    return head + params.weights_rate_limit <= closing and (not last_update or since >= params.tempo // 4)


def closing_block(params: SubnetParams) -> int | None:
    """The first of the blocks before the next epoch in which an epoch's last weights are sent."""
    end = params.next_epoch_block
    return None if end is None else end - max(2 * EPOCH_MARGIN, params.tempo // 8)


def scheduled_epoch(block: int, tempo: int, netuid: int) -> int | None:
    """The next epoch's block after `block` on runtimes that do not say it themselves; None: there are no epochs."""
    return block + tempo + 1 - (block + netuid + 1) % (tempo + 1) if tempo else None


def bulk_timeout_s(timing: TimingSection, block_s: float) -> float:
    """How long one transfer of bulk bytes (a slice, a log, a full probe) may take, in seconds: half of the time that
    scatter has, that of gather, or a twelfth of a round: the longest."""
    scatter = timing.output - timing.reduce_margin - timing.commit
    return max(timing.length / 12, scatter / 2, timing.transfer) * block_s


def stall_timeout_s(timing: TimingSection, block_s: float) -> float:
    """How long a peer may make no progress before we turn to another, in seconds.

    A third of the time that reducers have for their senders, (s+D, s+X-R): a reducer that freezes is found out while
    there is time left to send its slice to the backup.
    """
    return (timing.output - timing.reduce_margin - timing.commit) * block_s / 3
