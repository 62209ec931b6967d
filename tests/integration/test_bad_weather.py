"""Whole rounds over a chain node whose proxies cut, refuse and die: what happens to the run, and what must not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from devnode import DevNode, Proxy
from subnet import Node, Subnet, finished, make_subnet, running

from distributed_training.chain.base import Chain
from distributed_training.chain.local.genesis import chain_params
from distributed_training.chain.patient import PatientChain

pytestmark = pytest.mark.alone

ROUNDS = 2
FIRST = {"miner-0": "cut-after", "miner-1": "cut-watch", "miner-2": "cut-before", "validator-0": "cut-watch"}


async def test_rounds_go_on_in_bad_weather(tmp_path: Path) -> None:
    """Every first submission is cut; then one validator's endpoint dies between commit and output, then everybody's
    while the round is settled. Nobody ends or differs, all are included and paid, nothing is written twice."""
    subnet = make_subnet(tmp_path, miners=3, owner=False)
    block_s = chain_params(subnet.chain_file).block_s
    timing = subnet.manifest.timing
    async with AsyncExitStack() as stack:
        chain_node = await stack.enter_async_context(DevNode(subnet.chain_file))
        proxies = {name: await stack.enter_async_context(Proxy(chain_node.endpoint)) for name in subnet.names}
        subnet.endpoints = {name: proxy.endpoint for name, proxy in proxies.items()}

        def patient(chain: Chain) -> PatientChain:
            return PatientChain(chain, block_s)

        async with running(subnet, rounds=ROUNDS, wrap_chain=patient):
            for name, kind in FIRST.items():
                await proxies[name].fault(kind)
            await reached(chain_node, timing.first_block + timing.commit + 1)
            await proxies["validator-1"].fault("refuse", 3 * block_s)
            await reached(chain_node, timing.first_block + timing.map)
            for proxy in proxies.values():
                await proxy.fault("refuse", 2 * block_s)
            await finished(subnet)
        uids = sorted(miner.uid for miner in subnet.miners())
        for node in subnet.nodes.values():
            assert roots(node) == roots(subnet.nodes["validator-0"])
            # Rounds of a few seconds are too short for a busy machine now and then: each miner is in one at least.
            assert {uid for event in node.rounds().values() for uid in event["included"]} == set(uids)
        assert set(FIRST.values()) <= {kind for proxy in proxies.values() for kind in proxy.counts}
        assert all(validator.all("weights") for validator in subnet.validators())
    assert repeated(subnet) == []


def roots(node: Node) -> dict[int, str]:
    return {index: event["state_root"] for index, event in node.rounds().items()}


async def reached(node: DevNode, block: int) -> None:
    while await node.head() < block:  # noqa: ASYNC110 (the clock sends no event)
        await asyncio.sleep(0.02)


def repeated(subnet: Subnet) -> list[str]:
    """Commitments that say what their signer's last one said."""
    with sqlite3.connect(subnet.chain_file) as connection:
        found = connection.execute("select signer, call from extrinsics order by block, idx").fetchall()
    last: dict[str, str] = {}
    again = []
    for signer, call in found:
        if json.loads(call)["call_function"] == "set_commitment":
            again += [call] if last.get(signer) == call else []
            last[signer] = call
    return again
