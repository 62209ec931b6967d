"""What a node's events say of its uid, the run and the chain, over the real client in a real runtime's bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from chain_rig import NETUID, connect, keep_caches_in, key, make_chain
from devnode import DevNode
from samples import RUN

from distributed_training.chain.local.genesis import start_clock
from distributed_training.metrics.base import Metrics
from distributed_training.operator.safety import Watch


class Kept(list[Mapping[str, Any]]):
    def write(self, event: Mapping[str, Any]) -> None:
        self.append(event)

    def close(self) -> None: ...


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("spec", "collateral"), [(318, None), (462, 0.0)])
async def test_a_node_tells_where_the_chain_is_how_the_run_goes_and_how_safe_it_is(
    tmp_path: Path, caplog: Any, spec: int, collateral: float | None
) -> None:
    path, told = make_chain(tmp_path / "chain.sqlite", block_s=0.02, immunity_period=1000), Kept()
    keep_caches_in(tmp_path)
    start_clock(path)

    def of(name: str) -> list[Mapping[str, Any]]:
        return [event for event in told if event["event"] == name]

    async with DevNode(path, spec=spec) as node:
        chain, manifest = await connect(path, "miner-0", node.endpoint), RUN.model_copy(update={"netuid": NETUID})
        me = (await chain.roster(0)).by_hotkey(key("miner-0").hotkey)
        assert me is not None
        metrics = Metrics([told], role="miner", uid=me.uid, threads=False)
        watch = asyncio.create_task(Watch(chain, chain, manifest, me, metrics).run(0.02))
        await until(lambda: len(of("verdict")) > 1)
        watch.cancel()
        await chain.close()
    first, verdict = of("standing")[0], of("verdict")[0]
    assert 800 < first["immune_blocks"] <= 1000 and not first["earns"]
    assert (first["of"], first["free_places"], first["collateral"], first["uid"]) == (5, 3, collateral, me.uid)
    assert (verdict["word"], verdict["spec_version"]) == ("not known", spec) and verdict["head_age_s"] < 10
    assert len(of("chain")) > 2 and of("chain")[-1]["block"] >= 100
    assert len([m for m in caplog.messages if f"the immunity of uid {me.uid} ends in" in m]) == 1
