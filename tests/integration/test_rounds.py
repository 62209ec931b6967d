"""Rounds of a whole subnet: same state everywhere, what the chain says of it, payment, checkpoints, reproducibility."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_sinks import Gone, Stuck, on_a_full_disk
from subnet import FINISHED_ROUNDS, Node, Subnet, connect, finished, make_subnet, running
from transformers import AutoModelForCausalLM

from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.plan import layout_of
from distributed_training.chain.base import Chain
from distributed_training.checkpoints.local import LocalCheckpoints
from distributed_training.metrics.base import Sink
from distributed_training.roles.joining.published import load_published
from distributed_training.training.flat import to_flat
from distributed_training.training.outer import state_root

pytestmark = pytest.mark.alone

ROUNDS = FINISHED_ROUNDS
shared = pytest.mark.asyncio(loop_scope="session")


def roots(node: Node) -> list[str]:
    return [event["state_root"] for _, event in sorted(node.rounds().items())]


@shared
async def test_every_node_has_the_same_state_after_every_round(finished_subnet: Subnet) -> None:
    subnet = finished_subnet
    uids = sorted(node.uid for node in subnet.miners())
    expected = roots(subnet.nodes["owner"])
    assert len(set(expected)) == ROUNDS
    for node in subnet.nodes.values():
        assert roots(node) == expected, node.name
        for event in node.rounds().values():
            assert (event["applied"], event["included"]) == (True, uids), (node.name, event["reason"])
            assert (event["candidates"], event["counted"], event["missing"]) == (uids, [0, 1, 2, 3], {})
            assert event["credit"] == {str(uid): 1.0 for uid in uids}


@shared
async def test_a_miner_sends_what_the_others_need_of_it(finished_subnet: Subnet) -> None:
    subnet, miners = finished_subnet, finished_subnet.miners()
    wire = wire_bytes(INT8, layout_of(subnet.manifest, len(to_flat(miners[0].engine.model))))
    for miner in miners:
        for event in miner.rounds().values():
            assert event["bytes_sent"] >= wire * (len(miners) - 1) / len(miners)
            assert sum(event["sent_to"].values()) == event["bytes_sent"]


@shared
async def test_what_validators_put_on_chain_is_the_root_their_round_began_with(finished_subnet: Subnet) -> None:
    subnet, chain = finished_subnet, await connect(finished_subnet, "owner")
    expected = [subnet.manifest.model.initial_root, *roots(subnet.nodes["owner"])]
    for index in range(ROUNDS):
        roster = await chain.roster(subnet.manifest.round(index).map_block)
        for validator in subnet.validators():
            neuron = roster.by_hotkey(subnet.key(validator.name).hotkey)
            assert neuron is not None and neuron.commitment is not None and neuron.commitment.first is not None
            assert (neuron.commitment.first_round, neuron.commitment.first.hex()) == (index, expected[index])
    await chain.close()


@shared
async def test_every_audit_passes_with_no_error(finished_subnet: Subnet) -> None:
    """The last round is audited by nobody. A replay on the same machine is the same computation."""
    subnet = finished_subnet
    for validator in subnet.validators():
        for index in range(ROUNDS - 1):
            audits = {event["target"]: event for event in validator.all("audit", round=index)}
            assert sorted(audits) == sorted(node.uid for node in subnet.miners())
            for event in audits.values():
                assert (event["verdict"], event["reason"]) == ("pass", "ok")
                assert event["error"] is not None and event["error"] < 1e-3 < event["good"] < event["bad"]
                assert event["goodput_bytes_per_s"] > 0 and event["duty"] == 1.0


async def paid_block(subnet: Subnet, chain: Chain) -> int:
    """A block by which an epoch has ended after every validator's last weights, and none of them is inactive yet.

    The chain's clock goes on while other tests look at this run, and validators that stopped fall inactive.
    """
    validators, params, head = [v.uid for v in subnet.validators()], await chain.params(), await chain.head()
    neurons = (await chain.roster(head.number)).neurons
    block = max(n.last_update for n in neurons if n.uid in validators) + params.tempo
    await asyncio.sleep(max(0, block + 1 - head.number) * params.block_s)
    return block


@shared
async def test_weights_and_incentive_go_to_the_miners_in_equal_parts(finished_subnet: Subnet) -> None:
    subnet, chain = finished_subnet, await connect(finished_subnet, "owner")
    miners = [node.uid for node in subnet.miners()]
    block = await paid_block(subnet, chain)
    weights = await chain.weights(block)
    for validator in subnet.validators():
        assert weights[validator.uid] == pytest.approx(dict.fromkeys(miners, 0.25), abs=0.01)
    incentive = {n.uid: n.incentive for n in (await chain.roster(block)).neurons if n.incentive > 0}
    assert incentive == pytest.approx(dict.fromkeys(miners, 0.25), abs=0.01)
    await chain.close()


@shared
async def test_the_checkpoint_loads_and_is_the_state_it_says(finished_subnet: Subnet) -> None:
    subnet = finished_subnet
    store = LocalCheckpoints(subnet.root / "checkpoints")
    ref = store.newest()
    assert ref is not None and ref.round == 2  # checkpoint_every
    state = load_published(store, ref, subnet.manifest)
    root = state_root(state, subnet.manifest.average.chunk_coords).hex()
    assert store.describe(ref).state_root == root
    assert root == roots(subnet.nodes["owner"])[1]
    model = AutoModelForCausalLM.from_pretrained(ref.location)
    assert np.array_equal(to_flat(model), state.params)
    chain = await connect(subnet, "owner")
    owner = (await chain.roster((await chain.head()).number)).by_hotkey(subnet.key("owner").hotkey)
    assert owner is not None and owner.commitment is not None
    assert (owner.commitment.first, owner.commitment.second) == (subnet.manifest.digest, ref.digest)
    await chain.close()


async def test_the_same_seed_gives_the_same_roots_and_scores_whatever_sinks_do_and_another_seed_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sinks of the second run block for ever, raise always or have a full disk."""

    async def run(name: str, seed: int, sinks: Callable[[], Sequence[Sink]] | None = None) -> tuple[list[str], Any]:
        subnet = make_subnet(tmp_path / name, miners=2, validators=1, owner=False, seed=seed)
        async with running(subnet, rounds=2, exact=True, sinks=sinks):
            await finished(subnet)
            for node in subnet.nodes.values():
                node.parts.metrics.close(0.2)
            for miner in subnet.miners():
                assert [event["steps"] for event in miner.rounds().values()] == [3, 3]
            (found,) = {tuple(roots(node)) for node in subnet.nodes.values()}
            (scores,) = (event["cards"] for event in subnet.nodes["validator-0"].all("scores"))
            return list(found), {uid: {k: v for k, v in card.items() if k != "note"} for uid, card in scores.items()}

    first, again, other = await asyncio.gather(
        run("a", 1), run("b", 1, lambda: [Stuck(), Gone(), on_a_full_disk()]), run("c", 2)
    )
    assert first == again and len(first[0]) == 2
    assert other[0] != first[0]
    for kind in ("Gone", "JsonlSink"):
        assert sum(f"{kind} loses events" in line for line in caplog.messages) == 3, "each of three nodes, once"


async def test_one_round_over_libp2p_ends_in_the_same_root(tmp_path: Path) -> None:
    subnet = make_subnet(tmp_path, miners=3, validators=1, owner=False, libp2p=True, slower=1.6)
    async with running(subnet, rounds=1):
        await finished(subnet)
        assert len({roots(node)[0] for node in subnet.nodes.values()}) == 1
        for node in subnet.nodes.values():
            event = node.rounds()[0]
            assert event["applied"] and event["included"] == sorted(m.uid for m in subnet.miners())
            assert len(event["counted"]) == 3
