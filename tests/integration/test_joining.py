"""Nodes that come late or come back: from round 0, from their own snapshot, from the peers' one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from subnet import (
    HOST,
    WALLET,
    Node,
    Subnet,
    check_same_states,
    finished,
    make_subnet,
    running,
    seen,
    settled,
    start_node,
)

from distributed_training.chain.local.register import register_local

pytestmark = pytest.mark.alone

ROUNDS = 4


async def join(subnet: Subnet, name: str) -> Node:
    """Register on the running chain, then start; at which address it can be dialled, only validators know."""
    await register_local(subnet.chain_file, subnet.root / "wallets", WALLET, name)
    return await start_node(subnet, name, rounds=ROUNDS, alter=listen_everywhere)


def listen_everywhere(node: Node) -> None:
    node.config = node.config.model_copy(update={"axon": node.config.axon.model_copy(update={"ip": "0.0.0.0"})})


async def restart(subnet: Subnet, name: str) -> tuple[Node, Node]:
    """(before, after)."""
    before = subnet.nodes[name]
    await before.stop()
    return before, await start_node(subnet, name, rounds=ROUNDS)


def started_from(node: Node) -> tuple[str, int]:
    """State root at the start, and the first round the node settled."""
    (ready,) = node.all("ready")
    return ready["state_root"], min(node.rounds())


async def test_nodes_join_and_return_while_the_run_goes_on(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, slower=1.5)  # nodes load while the others' round goes on
    async with running(subnet, rounds=ROUNDS):
        await settled(subnet, 0)
        first_root = subnet.nodes["owner"].rounds()[0]["state_root"]
        early = await join(subnet, "miner-3")  # in round 1; the newest checkpoint is of round 0
        returned = (await restart(subnet, "miner-0"))[1]
        await seen(subnet.nodes["validator-1"], "scores", round=0, timeout_s=30)
        old, validator = await restart(subnet, "validator-1")
        await settled(subnet, 1, names=("owner", "validator-0"))
        await seen(subnet.nodes["owner"], "checkpoint", round=2, timeout_s=30)
        shutil.rmtree(subnet.root / "checkpoints")
        late = await join(subnet, "miner-4")
        await finished(subnet)
        check_same_states(subnet, "owner", ROUNDS)
        await check_early(subnet, early)
        assert started_from(returned) == (first_root, 1)
        assert returned.uid in subnet.nodes["owner"].rounds()[2]["included"]
        check_fetched(late)
        assert late.uid in subnet.nodes["owner"].rounds()[3]["included"]
        check_cards(old, validator)


async def test_a_validator_that_is_stopped_in_its_audits_leaves_no_task_behind(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=2, validators=1, owner=False)
    async with running(subnet):
        validator = subnet.nodes["validator-0"]
        await seen(validator, "phase", phase="audit", timeout_s=60)
        assert "audits" in {task.get_name() for task in asyncio.all_tasks()}
        await validator.stop()
        assert "audits" not in {task.get_name() for task in asyncio.all_tasks()}
        assert not validator.all("scores"), "half an audit is no observation"


def check_fetched(late: Node) -> None:
    """From peers: the newest state whose root the majority had committed. No checkpoint was there any more."""
    fetched = late.all("sync")[-1]
    assert fetched["share"] == 1.0 and fetched["bytes"] == fetched["total_bytes"] == sum(fetched["by_donor"].values())
    assert started_from(late)[1] == fetched["round"] >= 1
    assert late.rounds()[fetched["round"]]["included"], "rolled forward through a round it had no part in"
    assert late.uid not in late.rounds()[fetched["round"]]["included"]


async def check_early(subnet: Subnet, early: Node) -> None:
    """Rolled forward from round 0, included as soon as a roster knew it, paid after its first audit."""
    assert early.config.announced is None
    neuron = (await early.parts.chain.roster(early.parts.clock.finalized)).by_public_key(early.parts.signer.public_key)
    assert neuron is not None and neuron.address == (HOST, early.config.axon.port), "as validators saw it"
    assert started_from(early) == (subnet.manifest.model.initial_root, 0)
    owner = subnet.nodes["owner"]
    assert early.uid not in owner.rounds()[1]["included"]
    assert early.uid in owner.rounds()[2]["included"]
    for validator in subnet.validators():
        scores = validator.all("scores", round=2)[0]["cards"][str(early.uid)]
        assert scores["weight"] > 0, scores
        assert validator.all("audit", round=2, target=early.uid)[0]["verdict"] == "pass"


def check_cards(before: Node, after: Node) -> None:
    """A restarted validator goes on from the cards in its journal, and folds no round twice."""
    first = before.all("scores", round=0)[0]["cards"]
    rounds = [event["round"] for event in after.all("scores")]
    assert 0 not in rounds and rounds == sorted(set(rounds))
    last = after.all("scores")[-1]["cards"]
    for uid in first:
        assert last[uid]["S"] > first[uid]["S"]
        assert last[uid]["G"] == first[uid]["G"] == 1.0
