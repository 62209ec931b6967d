"""A miner that commits the vector and the log of another miner's former round, as if stolen."""

from __future__ import annotations

from pathlib import Path

import pytest
from copycat import Copycat
from subnet import make_subnet, running, scored

from distributed_training.averaging.store import RoundStore

pytestmark = pytest.mark.alone


async def test_a_copycat_is_included_once_found_by_replay_and_never_paid(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1, owner=False)
    victim = tmp_path / "nodes" / "miner-0"
    each = {"miner-2": {"make_worker": lambda engine, manifest: Copycat(engine, manifest, victim)}}
    async with running(subnet, each=each):
        await scored(subnet, 1)
        cheat, validator = subnet.nodes["miner-2"], subnet.nodes["validator-0"]
        honest = [node.uid for node in subnet.miners() if node is not cheat]
        assert validator.rounds()[0]["included"] == honest, "there is nothing to copy yet"
        stolen, copied = RoundStore(victim).own_wire(0), RoundStore(tmp_path / "nodes" / "miner-2").own_wire(1)
        assert stolen is not None and stolen == copied
        assert validator.rounds()[1]["included"] == sorted([*honest, cheat.uid])
        (audit,) = validator.all("audit", round=1, target=cheat.uid)
        assert (audit["verdict"], audit["failed_step"]) == ("fail", 0)
        cards = validator.all("scores", round=1)[0]["cards"]
        card = cards[str(cheat.uid)]
        assert (card["weight"], card["G"]) == (0.0, 0.0)
        assert "at step 0 (error " in card["note"], card["note"]
        shares = {int(uid): c["weight"] for uid, c in cards.items() if c["weight"] > 0}
        assert shares == pytest.approx(dict.fromkeys(honest, 1 / 2))
