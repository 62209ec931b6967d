from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.rules.clock import (
    EPOCH_MARGIN,
    Phase,
    closing_block,
    next_round,
    phase,
    quiet_from,
    round_at,
    scheduled_epoch,
    weights_due,
)
from distributed_training.protocol.sections import TimingSection
from distributed_training.protocol.types import Round, SubnetParams

LOCAL = TimingSection(
    first_block=10,
    finality=2,
    roster_lead=4,
    commit_margin=6,
    commit=26,
    reduce_margin=2,
    output=36,
    map=44,
    length=54,
    transfer=2,
    overlap=False,
)


def round_of(t: TimingSection, index: int) -> Round:
    s = t.first_block + index * t.length
    return Round(
        index=index,
        run=bytes(8),
        roster_block=s - t.roster_lead,
        start_block=s,
        train_end_block=s + t.commit - t.commit_margin,
        commit_block=s + t.commit,
        output_block=s + t.output,
        audit_block=s + t.output + t.roster_lead,
        map_block=s + t.map,
        end_block=s + t.length,
    )


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, Phase.TRAIN),
        (20, Phase.TRAIN),
        (21, Phase.COMMIT),
        (26, Phase.COMMIT),  # the last block in which a work hash counts
        (27, Phase.AVERAGE),
        (36, Phase.AVERAGE),
        (37, Phase.MAP),
        (44, Phase.MAP),
        (45, Phase.SETTLE),
        (53, Phase.SETTLE),
        (54, Phase.SETTLE),  # late is still settling
    ],
)
def test_every_named_block_is_the_last_of_its_phase(offset: int, expected: Phase) -> None:
    r = round_of(LOCAL, 3)
    assert phase(r, r.start_block + offset) is expected


def test_a_block_before_the_round_has_no_phase() -> None:
    with pytest.raises(ValueError, match="before round 2"):
        phase(round_of(LOCAL, 2), round_of(LOCAL, 2).start_block - 1)


@given(st.integers(0, 10_000))
def test_round_at_is_the_round_that_holds_the_block(block: int) -> None:
    index = round_at(LOCAL, block)
    if index is None:
        assert block < LOCAL.first_block
    else:
        r = round_of(LOCAL, index)
        assert r.start_block <= block < r.end_block


@given(st.integers(0, 10_000))
def test_next_round_is_the_first_whose_roster_is_not_past(block: int) -> None:
    index = next_round(LOCAL, block)
    assert index == 0 or round_of(LOCAL, index - 1).roster_block < block
    assert round_of(LOCAL, index).roster_block >= block


def subnet(**changes: Any) -> SubnetParams:
    return replace(SubnetParams(7, 360, 100, 12.0, "5F", "5G", next_epoch_block=1360), **changes)


@pytest.mark.parametrize(
    ("head", "last_update", "due"),
    [
        (1010, 900, True),  # early in the epoch: there is another set before it ends
        (1010, 911, False),  # the chain would not take it
        (1010, 920, False),
        (1215, 900, True),
        (1216, 900, False),  # kept for the closing blocks, which the rate limit would miss
        (1314, 900, False),
        (1315, 900, True),
        (1330, 1214, True),
        (1330, 1315, False),  # once
        (1356, 900, True),
        (1357, 900, False),  # it might land in the next epoch
        (1100, 0, True),
        (1330, 0, True),
    ],
)
def test_weights_are_due_early_and_once_more_before_the_epoch_ends(head: int, last_update: int, due: bool) -> None:
    assert weights_due(head, last_update, subnet()) is due


@pytest.mark.parametrize(("head", "last_update", "due"), [(119, 100, False), (120, 100, True), (5, 0, True)])
def test_without_epochs_only_the_rate_limit_counts(head: int, last_update: int, due: bool) -> None:
    assert weights_due(head, last_update, subnet(weights_rate_limit=20, next_epoch_block=None)) is due


@given(tempo=st.integers(20, 400), limit=st.integers(0, 600), registered=st.integers(0, 1000))
def test_no_epoch_is_missed_and_no_limit_broken(tempo: int, limit: int, registered: int) -> None:
    last, sent = registered, [registered]
    for end in range(1000 + tempo, 1000 + 6 * tempo, tempo):
        params = subnet(tempo=tempo, weights_rate_limit=limit, next_epoch_block=end)
        for head in range(end - tempo, end):
            if weights_due(head, last, params):
                last = head + 1
                assert last < end
                sent.append(last)
        mine = [block for block in sent if end - tempo <= block < end]
        closing = closing_block(params)
        assert closing is not None and len(mine) <= 5
        assert mine or sent[-1] + limit >= end - EPOCH_MARGIN, "the chain would have taken one"
    assert all(b - a > limit for a, b in pairwise(sent) if a)


@given(st.integers(0, 10_000), st.integers(1, 400), st.integers(0, 100))
def test_old_runtimes_run_their_epochs_by_block_number(block: int, tempo: int, netuid: int) -> None:
    epoch = scheduled_epoch(block, tempo, netuid)
    assert epoch is not None and block < epoch <= block + tempo + 1 and (epoch + netuid + 1) % (tempo + 1) == 0
    assert scheduled_epoch(block, 0, netuid) is None


@given(block=st.integers(0, 2000))
def test_who_changes_its_peer_key_waits_until_no_round_needs_it(block: int) -> None:
    quiet = quiet_from(LOCAL, block)
    assert block <= quiet <= block + LOCAL.roster_lead + LOCAL.map + 1
    rounds = [round_of(LOCAL, index) for index in range(60)]
    assert not any(r.roster_block <= quiet <= r.map_block for r in rounds)
    assert quiet == block or any(r.roster_block <= block <= r.map_block for r in rounds), "it waits for nothing else"
