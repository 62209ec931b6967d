"""Rounds in which something is missing: a data page, the validators' maps, most of the slices."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event

import pytest
from ring import Ring, play
from subnet import Subnet, finished, make_subnet, running, scored

from distributed_training.chain.local.store import block_hash
from distributed_training.data.base import Page, PageSource
from distributed_training.errors import DataUnavailable
from distributed_training.protocol.rules.assignment import assignment_beacon, page_index
from distributed_training.roles.miner import ExactStepsMissed
from distributed_training.roles.mining.work import round_permutation

pytestmark = pytest.mark.alone

STEPS = 8  # more than one page holds


class LackingPages:
    """A page source on which some pages cannot be read."""

    def __init__(self, source: PageSource, lacking: set[int]) -> None:
        self._source, self._lacking = source, lacking
        self.num_pages, self.sha256 = source.num_pages, source.sha256
        self.heldout, self.facts = source.heldout, source.facts

    def fetch(self, index: int) -> Page:
        if index in self._lacking:
            raise DataUnavailable(f"page {index} is missing")
        return self._source.fetch(index)


class HangingPages(LackingPages):
    """A page source that takes for ever over some pages."""

    come = Event()

    def fetch(self, index: int) -> Page:
        if index in self._lacking:
            self.come.wait(60)
        return self._source.fetch(index)


def page_of(subnet: Subnet, name: str, number: int) -> int:
    """Index of the `number`-th page of a node in round 0; a local chain's block hashes follow from its seed."""
    manifest = subnet.manifest
    beacon = assignment_beacon(block_hash(subnet.seed, manifest.round(0).roster_block), manifest.netuid, 0)
    index = page_index(round_permutation(manifest, 0, beacon), manifest.max_uids, subnet.names.index(name), number)
    assert index is not None
    return index


async def test_who_lacks_a_page_stops_there_and_judges_nobody_by_it(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, owner=False)
    lacking_miner, lacking_auditor = page_of(subnet, "miner-0", 1), page_of(subnet, "miner-1", 0)
    each = {
        "miner-0": {"pages": lambda source: LackingPages(source, {lacking_miner})},
        "validator-1": {"pages": lambda source: LackingPages(source, {lacking_auditor})},
    }
    async with running(subnet, each=each, steps=STEPS):
        await scored(subnet, 0)
        short, other = subnet.nodes["miner-0"], subnet.nodes["miner-1"]
        check_short_miner(subnet)
        seeing, blind = (node.all("audit", round=0) for node in subnet.validators())
        assert {event["target"]: event["verdict"] for event in seeing} == dict.fromkeys(
            (node.uid for node in subnet.miners()), "pass"
        )
        verdicts = {event["target"]: event["verdict"] for event in blind}
        assert verdicts[other.uid] is None, "its own trouble is no observation"
        assert verdicts[short.uid] == "pass"
        card = subnet.nodes["validator-1"].all("scores", round=0)[0]["cards"][str(other.uid)]
        assert (card["weight"], card["reason"]) == (0.0, "no passed audit yet")
        assert card["G"] == 1.0, "neither for nor against it"


async def test_who_waits_for_a_page_for_ever_goes_on_without_it_and_judges_nobody_by_it(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=2, owner=False)
    hanging_miner, hanging_auditor = page_of(subnet, "miner-0", 1), page_of(subnet, "miner-1", 0)
    each = {
        "miner-0": {"pages": lambda source: HangingPages(source, {hanging_miner})},
        "validator-1": {"pages": lambda source: HangingPages(source, {hanging_auditor})},
    }
    try:
        async with running(subnet, each=each, steps=STEPS):
            await scored(subnet, 0)
            check_short_miner(subnet, "did not come in time")
            blind, other = subnet.nodes["validator-1"], subnet.nodes["miner-1"]
            (audit,) = blind.all("audit", round=0, target=other.uid)
            assert audit["verdict"] is None, "its own trouble is no observation"
            assert "did not come in time" in blind.all("fault", round=0, what="audit")[0]["detail"]
    finally:
        HangingPages.come.set()


def check_short_miner(subnet: Subnet, detail: str = "is missing") -> None:
    """It committed the steps it had, and they counted."""
    short = subnet.nodes["miner-0"]
    (train,), (fault,) = short.all("train", round=0), short.all("fault", round=0)
    assert 1 <= train["steps"] < STEPS
    assert fault["what"] == "data" and detail in fault["detail"]
    event = short.rounds()[0]
    assert event["applied"] and short.uid in event["included"] and event["credit"][str(short.uid)] == 1.0
    claimed = subnet.nodes["validator-0"].rounds()[0]["tokens"]
    assert claimed[str(short.uid)] == train["steps"] * subnet.manifest.tokens_per_step
    assert claimed[str(subnet.nodes["miner-1"].uid)] == STEPS * subnet.manifest.tokens_per_step


async def test_a_miner_told_to_do_exact_steps_ends_when_it_cannot(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=1, validators=1, owner=False)
    lacking = {page_of(subnet, "miner-0", 1)}
    each = {"miner-0": {"exact": True, "steps": STEPS, "pages": lambda source: LackingPages(source, lacking)}}
    async with running(subnet, each=each):
        async with asyncio.timeout(30):
            (result,) = await asyncio.gather(subnet.nodes["miner-0"].task, return_exceptions=True)
        assert isinstance(result, BaseExceptionGroup)
        assert result.subgroup(ExactStepsMissed) is not None
        assert not subnet.nodes["miner-0"].rounds()


@pytest.mark.parametrize("exact", [False, True])
def test_a_miner_told_to_do_exact_steps_sits_out_the_round_it_came_too_late_for(tmp_path: Path, exact: bool) -> None:
    async def story(ring: Ring) -> None:
        await ring.at(-2)
        await ring.kill("miner-1")
        await ring.at(2)
        ring.nodes["miner-1"].exact = exact
        await ring.start("miner-1")
        await ring.settled(1)

    ring = play(tmp_path, story, miners=3)
    late, other = ring.nodes["miner-1"], ring.nodes["miner-0"]
    assert (late.uid in other.rounds[0]["included"]) is not exact
    assert [e["round"] for e in late.events if e["event"] == "train"] == ([1] if exact else [0, 1])
    assert late.uid in other.rounds[1]["included"]
    assert late.rounds[1]["state_root"] == other.rounds[1]["state_root"]


async def test_a_round_without_maps_or_with_too_few_slices_is_discarded(tmp_path: Path) -> None:
    async def discarded(folder: str, absent: str, reason: str) -> None:
        """Round 0 without one node: state as it was, nobody credited, nobody scored."""
        subnet = make_subnet(tmp_path / folder, miners=2, validators=1)
        async with running(subnet, without=[absent], rounds=1):
            await finished(subnet)
            for node in subnet.nodes.values():
                event = node.rounds()[0]
                assert (event["applied"], event["reason"]) == (False, reason), node.name
                assert (event["included"], event["counted"], event["credit"]) == ([], [], {})
                assert event["state_root"] == subnet.manifest.model.initial_root
                assert not node.all("audit") and not node.all("scores")

    await asyncio.gather(
        discarded("maps", "validator-0", "the validators of this run hold too little of the permit stake"),
        discarded("slices", "miner-1", "1 of 1 slices count, 2 needed"),
    )
