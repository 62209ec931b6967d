"""What a run leaves behind: snapshots at the manifest's interval, checkpoints, and what happens if one is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from puppets import follower_of
from subnet import EventList, Subnet, finished, make_subnet, running

from distributed_training.chain.base import Chain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.errors import ChainFault, ChainRefused, ChainUnreachable
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.types import Field
from distributed_training.roles.auditing.evaluation import Evaluator
from distributed_training.roles.owner import Owner


async def test_snapshots_are_written_at_their_interval_and_after_the_last_round(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=2, validators=1, owner=False, overrides={"keep": {"snapshot_every": 4}})
    async with running(subnet, rounds=2):
        await finished(subnet)
        for node in subnet.nodes.values():
            kept = sorted(path.name for path in (node.config.node_dir / "state").iterdir())
            assert kept == ["000000.safetensors", "000002.safetensors"], node.name
            newest = node.parts.store.newest_state()
            assert newest is not None and newest[1].applied == sum(e["applied"] for e in node.rounds().values())


class Unwilling:
    """A chain that takes no commitment."""

    def __init__(self, fault: ChainFault) -> None:
        self._fault = fault

    async def commit(self, fields: Sequence[Field]) -> int:
        raise self._fault


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("fault", [ChainUnreachable("not within 180 s"), ChainRefused("too soon", "rate_limited")])
async def test_a_checkpoint_that_cannot_be_announced_ends_nothing(
    finished_subnet: Subnet, tmp_path: Path, fault: ChainFault
) -> None:
    node, events = finished_subnet.nodes["owner"], list[dict[str, Any]]()
    parts = replace(
        node.parts,
        chain=cast(Chain, Unwilling(fault)),
        checkpoints=LocalCheckpoints(tmp_path / "checkpoints"),
        metrics=Metrics([EventList(events)], role="owner", uid=0),
    )
    owner = Owner(parts, follower_of(node), cast(Evaluator, None), lambda flat: {})
    await owner.begin()
    assert [(e["event"], e["what"], e["detail"]) for e in events] == [("fault", "checkpoint", str(fault))]
