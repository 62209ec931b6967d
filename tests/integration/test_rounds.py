"""Rounds of a whole subnet: same state everywhere, what the chain says of it, payment, checkpoints, reproducibility."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from subnet import Node, Subnet, connect, finished, make_subnet, running
from transformers import AutoModelForCausalLM

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.store import decode_state
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.roles.owner import STATE_FILE
from distributed_training.training.model import to_flat
from distributed_training.training.outer import state_root

ROUNDS = 3


def roots(node: Node) -> list[str]:
    return [event["state_root"] for _, event in sorted(node.rounds().items())]


async def test_four_miners_two_validators_and_an_owner_share_every_round(tmp_path: Path) -> None:
    async with running(make_subnet(tmp_path), rounds=ROUNDS) as subnet:
        await finished(subnet)
        check_states(subnet)
        check_traffic(subnet)
        await check_committed_roots(subnet)
        check_audits(subnet)
        await check_payment(subnet)
        await check_checkpoint(subnet)


def check_states(subnet: Subnet) -> None:
    uids = sorted(node.uid for node in subnet.miners())
    expected = roots(subnet.nodes["owner"])
    assert len(set(expected)) == ROUNDS
    for node in subnet.nodes.values():
        assert roots(node) == expected, node.name
        for event in node.rounds().values():
            assert (event["applied"], event["included"]) == (True, uids), (node.name, event["reason"])
            assert event["counted"] == [0, 1, 2, 3]
            assert event["credit"] == {str(uid): 1.0 for uid in uids}


def check_traffic(subnet: Subnet) -> None:
    miners = subnet.miners()
    wire = layout_of(subnet.manifest, len(to_flat(miners[0].engine.model))).wire_bytes
    for miner in miners:
        for event in miner.rounds().values():
            assert event["bytes_sent"] >= wire * (len(miners) - 1) / len(miners)


async def check_committed_roots(subnet: Subnet) -> None:
    """What each validator put on chain in round r is the root after round r - 1."""
    chain = await connect(subnet, "owner")
    expected = [subnet.manifest.model.initial_root, *roots(subnet.nodes["owner"])]
    for index in range(ROUNDS):
        roster = await chain.roster(subnet.manifest.round(index).map_block)
        for validator in subnet.validators():
            neuron = roster.by_hotkey(subnet.key(validator.name).hotkey)
            assert neuron is not None and neuron.commitment is not None and neuron.commitment.first is not None
            assert (neuron.commitment.first_round, neuron.commitment.first.hex()) == (index, expected[index])
    await chain.close()


def check_audits(subnet: Subnet) -> None:
    """Everybody audits everybody; the last round is left to nobody. A replay on this machine is the same replay."""
    for validator in subnet.validators():
        for index in range(ROUNDS - 1):
            audits = {event["target"]: event for event in validator.all("audit", round=index)}
            assert sorted(audits) == sorted(node.uid for node in subnet.miners())
            for event in audits.values():
                assert (event["verdict"], event["reason"]) == ("pass", "ok")
                assert event["error"] is not None and event["error"] < 1e-3
                assert event["goodput_bytes_per_s"] > 0 and event["duty"] == 1.0


async def check_payment(subnet: Subnet) -> None:
    chain, miners = await connect(subnet, "owner"), [node.uid for node in subnet.miners()]
    head = (await chain.head()).number
    weights = await chain.weights(head)
    for validator in subnet.validators():
        assert weights[validator.uid] == pytest.approx(dict.fromkeys(miners, 0.25), abs=0.01)
    incentive = {n.uid: n.incentive for n in (await chain.roster(head)).neurons if n.incentive > 0}
    assert incentive == pytest.approx(dict.fromkeys(miners, 0.25), abs=0.01)
    await chain.close()


async def check_checkpoint(subnet: Subnet) -> None:
    store = LocalCheckpoints(subnet.root / "checkpoints")
    ref = store.newest()
    assert ref is not None and ref.round == 2  # checkpoint_every
    index, state = decode_state(store.read(ref, STATE_FILE))
    described = json.loads(store.read(ref, "training_state.json"))
    root = state_root(state, subnet.manifest.average.chunk_coords).hex()
    assert (index, root) == (2, described["state_root"])
    assert root == roots(subnet.nodes["owner"])[1]
    model = AutoModelForCausalLM.from_pretrained(ref.location)
    assert np.array_equal(to_flat(model), state.params)
    chain = await connect(subnet, "owner")
    owner = (await chain.roster((await chain.head()).number)).by_hotkey(subnet.key("owner").hotkey)
    assert owner is not None and owner.commitment is not None
    assert (owner.commitment.first, owner.commitment.second) == (subnet.manifest.digest, ref.digest)
    await chain.close()


async def test_the_same_seed_gives_the_same_root_and_another_seed_another(tmp_path: Path) -> None:
    async def final_root(name: str, seed: int) -> str:
        subnet = make_subnet(tmp_path / name, miners=2, validators=1, owner=False, seed=seed)
        async with running(subnet, rounds=2):
            await finished(subnet)
            for miner in subnet.miners():
                assert [event["steps"] for event in miner.rounds().values()] == [3, 3]
            (root,) = {roots(node)[-1] for node in subnet.nodes.values()}
            return root

    first, again, other = await asyncio.gather(final_root("a", 1), final_root("b", 1), final_root("c", 2))
    assert first == again
    assert other != first


async def test_one_round_over_libp2p_ends_in_the_same_root(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1, owner=False, libp2p=True, block_s=0.25)
    async with running(subnet, rounds=1):
        await finished(subnet)
        assert len({roots(node)[0] for node in subnet.nodes.values()}) == 1
        for node in subnet.nodes.values():
            event = node.rounds()[0]
            assert event["applied"] and event["included"] == sorted(m.uid for m in subnet.miners())
            assert len(event["counted"]) == 3
