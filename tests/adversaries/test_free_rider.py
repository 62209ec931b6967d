"""A miner that commits noise and invents its log: averaged in once, then found by a replay and never paid."""

from __future__ import annotations

from pathlib import Path

import pytest
from free_rider import FreeRider
from subnet import make_subnet, running, scored

pytestmark = pytest.mark.alone


async def test_a_free_rider_is_included_once_found_by_replay_and_never_paid(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, owner=False)
    async with running(subnet, each={"miner-3": {"make_worker": FreeRider}}):
        await scored(subnet, 0)
        cheat = subnet.nodes["miner-3"]
        honest = [node.uid for node in subnet.miners() if node is not cheat]
        first = subnet.nodes["validator-0"].rounds()[0]
        assert first["included"] == sorted([*honest, cheat.uid]), "its bytes are well-formed and in time"
        assert first["credit"][str(cheat.uid)] == 1.0
        for validator in subnet.validators():
            (audit,) = validator.all("audit", round=0, target=cheat.uid)
            assert (audit["verdict"], audit["failed_step"]) == ("fail", 0)
            assert audit["error"] > 0.1
            cards = validator.all("scores", round=0)[0]["cards"]
            card = cards[str(cheat.uid)]
            assert (card["weight"], card["G"], card["S"]) == (0.0, 0.0, 0.0)
            assert "at step 0 (error " in card["note"] and card["reason"].startswith("audit failed")
            shares = {int(uid): c["weight"] for uid, c in cards.items() if c["weight"] > 0}
            assert shares == pytest.approx(dict.fromkeys(honest, 1 / 3))
            (weights,) = validator.all("weights", round=0)
            assert str(cheat.uid) not in {uid for uid, share in weights["weights"].items() if share > 0}
