from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.protocol.manifest import TimingSection
from distributed_training.protocol.rules.clock import next_round, phase, quiet_from, round_at, weights_due
from distributed_training.protocol.types import Phase, Round

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
)


def round_of(t: TimingSection, index: int) -> Round:
    s = t.first_block + index * t.length
    return Round(
        index=index,
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


@pytest.mark.parametrize(
    ("head", "last_update", "rate_limit", "due"),
    [(119, 100, 20, False), (120, 100, 20, True), (121, 100, 20, True), (5, 0, 20, True), (100, 100, 0, True)],
)
def test_weights_are_due_when_the_chain_would_take_them(
    head: int, last_update: int, rate_limit: int, due: bool
) -> None:
    assert weights_due(head, last_update, rate_limit) is due


@given(block=st.integers(0, 2000))
def test_who_changes_its_peer_key_waits_until_no_round_needs_it(block: int) -> None:
    quiet = quiet_from(LOCAL, block)
    assert block <= quiet <= block + LOCAL.roster_lead + LOCAL.map + 1
    rounds = [round_of(LOCAL, index) for index in range(60)]
    assert not any(r.roster_block <= quiet <= r.map_block for r in rounds)
    assert quiet == block or any(r.roster_block <= block <= r.map_block for r in rounds), "it waits for nothing else"
