"""A miner that claims more steps than its pages hold fails its audit: it is not the auditor who lacks a page."""

from __future__ import annotations

from pathlib import Path

import pytest
from overclaimer import Overclaimer
from stage import Staged
from subnet import make_subnet, running, scored

pytestmark = pytest.mark.alone


async def test_more_steps_than_the_pages_hold_is_a_fail(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1, owner=False, overrides={"inner": {"max_steps": 400}})
    async with running(subnet, each={"miner-2": {"make_worker": Staged(Overclaimer()).worker}}):
        await scored(subnet, 0)
        cheat = subnet.nodes["miner-2"]
        (audit,) = subnet.nodes["validator-0"].all("audit", round=0, target=cheat.uid)
        assert (audit["verdict"], audit["reason"]) == ("fail", "more steps claimed than its pages hold")
        cards = subnet.nodes["validator-0"].all("scores", round=0)[0]["cards"]
        assert cards[str(cheat.uid)]["weight"] == 0.0
        assert sum(card["weight"] for card in cards.values()) > 0.99
