"""A validator's weights on a subnet that refuses, hides, drops and forgets: every epoch that can have them has them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import RUN, key, neuron, roster

from distributed_training.errors import ChainRefused, ChainUnreachable, StatePruned
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.types import Role, Roster, SubnetParams
from distributed_training.roles.auditing.weights import WeightSetter
from distributed_training.roles.parts import Parts

TEMPO, LIMIT, FINALITY, ME, OWNER = 40, 10, 2, 1, "5hot0"
Row = dict[int, int]


@dataclass
class Subnet:
    """One validator's view of a chain: `head` moves by hand, writes get into the next block."""

    commit_reveal: bool = False
    version_key: int = 0
    min_allowed_weights: int = 1
    max_weight_limit: int = 65535
    head: int = 100
    permit: bool = True
    gone: set[int] = field(default_factory=set)  # uids registered anew in block 90
    fails: list[Exception | None] = field(default_factory=list)  # of the next writes
    lands: bool = False  # a failed write gets into its block all the same
    hides: bool = False  # commits are never revealed
    asked: int = 0
    updates: dict[int, int] = field(default_factory=lambda: {0: 50})  # from block -> last_update
    rows: dict[int, Row] = field(default_factory=dict)  # from block -> row
    taken: list[tuple[int, Row]] = field(default_factory=list)

    def at(self, values: Mapping[int, Any], block: int, default: Any = None) -> Any:
        return max(((b, v) for b, v in values.items() if b <= block), default=(0, default), key=lambda x: x[0])[1]

    @property
    def epoch(self) -> int:
        return (self.head // TEMPO + 1) * TEMPO

    async def params(self) -> SubnetParams:
        self.asked += 1
        return SubnetParams(
            1, TEMPO, LIMIT, 1.0, OWNER, "5cold", self.min_allowed_weights, self.max_weight_limit,
            self.commit_reveal, 1, self.version_key, self.epoch,
        )  # fmt: skip

    async def roster(self, block: int) -> Roster:
        self.asked += 1
        me = neuron(ME, Role.VALIDATOR, may_validate=self.permit, last_update=self.at(self.updates, block))
        miners = [neuron(uid, registered_block=90 if uid in self.gone else 1) for uid in (2, 3, 4)]
        return roster(neuron(0, Role.OWNER), me, *miners, block=block)

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        self.asked += 1
        row = self.at(self.rows, block, {})
        return {ME: {uid: value / sum(row.values()) for uid, value in row.items()}} if row else {}

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        self.asked += 1
        block, fault = self.head + 1, self.fails.pop(0) if self.fails else None
        if fault is not None and not self.lands:
            raise fault
        if block - self.at(self.updates, block) < LIMIT:
            raise ChainRefused(f"retry in {block} blocks", "rate_limited")
        row = {uid: int(value) for uid, value in weights.items()}
        self.taken.append((block, row))
        self.updates[block] = block
        if not self.commit_reveal:
            self.rows[block] = row
        elif not self.hides:
            self.rows[(block // TEMPO + 1) * TEMPO + 3] = row
        if fault is not None:
            raise fault
        return block


class Kept:
    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    def write(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None: ...


def cards(*earned: float) -> dict[str, ScoreCard]:
    """Of the miners from uid 2 on, by tokens."""
    return {
        f"5hot{uid}": ScoreCard(f"5hot{uid}", 1, uid, (), share, 1.0, 0.0, 1.0, (), True, 0, "", "")
        for uid, share in enumerate(earned, 2)
    }


class Rig:
    def __init__(self, subnet: Subnet, burn_share: float = 0.0) -> None:
        self.subnet, self.kept = subnet, Kept()
        scoring = RUN.scoring.model_copy(update={"burn_share": burn_share, "cutoff": 0.0})
        self.clock = SimpleNamespace(head=subnet.head, finalized=subnet.head - FINALITY)
        parts = SimpleNamespace(
            manifest=RUN.model_copy(update={"scoring": scoring}),
            params=SubnetParams(1, TEMPO, LIMIT, 1.0, OWNER, "5cold", next_epoch_block=subnet.epoch),
            chain=subnet,
            clock=self.clock,
            signer=SimpleNamespace(public_key=key(ME)),
            metrics=Metrics([self.kept], role="validator", uid=ME, threads=False),
        )
        self.setter = WeightSetter(cast(Parts, parts))

    async def pass_blocks(self, count: int) -> None:
        for _ in range(count):
            await self.setter.look()
            self.subnet.head += 1
            self.clock.head, self.clock.finalized = self.subnet.head, self.subnet.head - FINALITY

    def faults(self) -> list[str]:
        return [str(e["detail"]) for e in self.kept.events if e["event"] == "fault" and e["what"] == "weights"]


async def test_a_fold_is_sent_once_and_nothing_is_asked_while_nothing_is_due() -> None:
    rig = Rig(Subnet())
    await rig.pass_blocks(15)
    assert rig.subnet.asked == 0
    rig.setter.offer(3, cards(0.5, 0.25))
    await rig.pass_blocks(20)
    # kept for the closing blocks of the epoch that ends at 120, in which the rate limit would have missed them
    assert rig.subnet.taken == [(116, {2: 65535, 3: 32768})]
    asked = rig.subnet.asked
    await rig.pass_blocks(100)
    assert len(rig.subnet.taken) == 1 and rig.subnet.asked == asked and not rig.faults()
    (event,) = [e for e in rig.kept.events if e["event"] == "weights"]
    assert (event["round"], event["block"]) == (3, 116)
    assert event["weights"]["2"] == pytest.approx(2 / 3, rel=1e-4)


async def test_newer_scores_go_out_early_and_before_the_epoch_ends() -> None:
    rig = Rig(Subnet(head=121))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(20)
    rig.setter.offer(4, cards(1.0, 1.0))
    await rig.pass_blocks(40)
    assert [block for block, _ in rig.subnet.taken] == [122, 142] and not rig.faults()


@pytest.mark.parametrize("commit_reveal", [False, True])
async def test_a_set_that_nobody_answered_is_looked_up_and_not_doubled(commit_reveal: bool) -> None:
    subnet = Subnet(commit_reveal, head=121, fails=[ChainUnreachable("cut in mid-submission")], lands=True)
    rig = Rig(subnet)
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(80)
    assert [block for block, _ in subnet.taken] == [122]
    assert rig.faults() == ["no weights set: cut in mid-submission; it is tried again"]
    assert [e["block"] for e in rig.kept.events if e["event"] == "weights"] == [122]


async def test_what_fails_is_tried_again_while_the_epoch_lasts_and_said_once() -> None:
    refused = [ChainRefused(f"priority too low ({n})", "unknown") for n in range(3)]
    rig = Rig(Subnet(head=121, fails=[*refused, ChainUnreachable("down")]))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(39)
    assert [block for block, _ in rig.subnet.taken] == [137]  # after 1, 2, 4 and 8 blocks
    assert rig.faults() == [f"no weights set: {text}; it is tried again" for text in ("priority too low (0)", "down")]


async def test_another_row_on_chain_and_a_missing_reveal_are_alarms() -> None:
    rig = Rig(Subnet(head=121))
    rig.setter.offer(3, cards(1.0, 1.0))
    await rig.pass_blocks(1)
    rig.subnet.rows[122] = {2: 65535, 4: 65535}  # another program with the same hotkey
    await rig.pass_blocks(20)
    (alarm,) = rig.faults()
    assert "of block 122 are on chain otherwise than sent (2 of 2 shares differ, uid 3 has 0.00000" in alarm
    rig = Rig(Subnet(commit_reveal=True, head=121, hides=True))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(80)
    assert not rig.faults()  # until block 199 it may still come
    await rig.pass_blocks(10)
    (alarm,) = rig.faults()
    assert "committed in block 122 were not revealed by block 199 (there is no row)" in alarm and "drand" in alarm


async def test_a_revealed_row_is_no_alarm_and_of_two_commits_the_last_one_counts() -> None:
    rig = Rig(Subnet(commit_reveal=True, head=121))
    for index in range(12):
        rig.setter.offer(index, cards(1.0, *(0.1 for _ in range(index % 3))))
        await rig.pass_blocks(17)
    assert len(rig.subnet.taken) > 7 and not rig.faults()


async def test_a_set_that_a_reorganisation_took_back_is_sent_again() -> None:
    rig = Rig(Subnet(head=121))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(1)
    del rig.subnet.updates[122], rig.subnet.rows[122]
    await rig.pass_blocks(30)
    assert [block for block, _ in rig.subnet.taken] == [122, 125] and not rig.faults()


async def test_a_read_that_fails_for_good_is_given_up() -> None:
    class Pruned(Subnet):
        async def roster(self, block: int) -> Roster:
            if block < self.head - 256:
                raise StatePruned(f"block {block}")
            return await super().roster(block)

    rig = Rig(Pruned(head=121))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(1)
    rig.subnet.head += 300
    await rig.pass_blocks(6)
    assert len(rig.faults()) == 1


async def test_no_trouble_ends_the_setting_of_weights() -> None:
    rig = Rig(Subnet(head=121, fails=[RuntimeError("whatever")]))
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(6)
    assert len(rig.subnet.taken) == 1 and "whatever" in rig.faults()[0]


async def test_only_the_registration_that_earned_it_is_paid_by_the_roster_of_the_head() -> None:
    rig = Rig(Subnet(head=121, gone={3}))
    rig.setter.offer(3, cards(1.0, 1.0, 1.0))
    await rig.pass_blocks(2)
    assert rig.subnet.taken == [(122, {2: 65535, 4: 65535})]


@pytest.mark.parametrize(
    ("subnet", "said"),
    [
        (Subnet(permit=False, head=121), []),
        (Subnet(version_key=99, head=121), ["version 99 and newer"]),
        (Subnet(min_allowed_weights=4, head=121), ["asks for 4 or more"]),
    ],
)
async def test_what_the_chain_would_refuse_is_not_sent_and_asked_again_in_the_next_epoch(
    subnet: Subnet, said: list[str]
) -> None:
    rig = Rig(subnet)
    rig.setter.offer(3, cards(1.0, 1.0))
    await rig.pass_blocks(38)
    assert not subnet.taken and len(rig.faults()) == len(said)
    assert all(part in fault for part, fault in zip(said, rig.faults(), strict=True))
    asked = subnet.asked
    assert asked <= 3
    subnet.permit, subnet.version_key, subnet.min_allowed_weights = True, 0, 1
    await rig.pass_blocks(20)
    assert [block for block, _ in subnet.taken] == [161]


async def test_a_burn_share_is_announced_with_its_price(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    rig = Rig(Subnet(head=121), burn_share=0.25)
    rig.setter.begin()
    await asyncio.sleep(0)
    await rig.setter.cancel()
    assert caplog.messages == [
        "burn_share 0.25: the whole subnet's emission is scaled to 75 %, for everybody in it",
    ]
    rig.setter.offer(3, cards(1.0))
    await rig.pass_blocks(1)
    assert rig.subnet.taken == [(122, {0: 21845, 2: 65535})]


FAULTS = st.lists(
    st.sampled_from([None, None, ChainUnreachable("down"), ChainRefused("stale", "unknown")]), max_size=30
)


@settings(max_examples=60)
@given(FAULTS, st.booleans(), st.booleans(), st.integers(1, 60))
def test_whatever_fails_nothing_is_doubled_and_nothing_true_is_an_alarm(
    fails: list[Exception | None], commit_reveal: bool, lands: bool, every: int
) -> None:
    subnet = Subnet(commit_reveal, fails=list(fails), lands=lands)
    rig = Rig(subnet)

    async def main() -> None:
        for index in range(240 // every):
            rig.setter.offer(index, cards(1.0, 0.1 + 0.8 * (index % 2)))
            await rig.pass_blocks(every)
        await rig.pass_blocks(90)

    asyncio.run(main())
    blocks = [block for block, _ in subnet.taken]
    assert blocks and all(later - former >= LIMIT for former, later in pairwise(blocks))
    assert all(1 <= block % TEMPO <= TEMPO - 3 for block in blocks), "none lands beside the epoch it is meant for"
    assert not any("on chain otherwise" in fault or "revealed" in fault for fault in rig.faults())
    sent = [event["block"] for event in rig.kept.events if event["event"] == "weights"]
    assert sent == blocks, "every set is known, and no other"


@settings(max_examples=40)
@given(st.sets(st.integers(100, 300), max_size=40))
def test_whatever_is_taken_back_is_sent_again_and_is_no_alarm(reorganised: set[int]) -> None:
    subnet = Subnet()
    rig = Rig(subnet)

    async def main() -> None:
        for index in range(14):
            rig.setter.offer(index, cards(1.0, 0.1 + 0.05 * index))
            for _ in range(15):
                await rig.pass_blocks(1)
                if subnet.head in reorganised:  # the newest block comes again, without our write
                    for written in (subnet.updates, subnet.rows):
                        cast(dict[int, Any], written).pop(subnet.head, None)
        await rig.pass_blocks(TEMPO)

    asyncio.run(main())
    blocks = sorted(subnet.rows)
    assert all(later - former >= LIMIT for former, later in pairwise(blocks)) and not rig.faults()
    assert subnet.rows[blocks[-1]][3] == pytest.approx(65535 * 0.75, abs=1), "the newest scores are there in the end"
