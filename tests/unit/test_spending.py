"""A node's chain client never spends: whatever is not its own address, weights or commitment is refused unsigned."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import bittensor as bt
import pytest
from bittensor.intents import REGISTRY, build

from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_keypair
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.chain.spending import NodePolicy
from distributed_training.errors import ChainFault

ROOT = Path(__file__).parents[2]
NETUID = 7
HOTKEY, OTHER = derive_keypair(1, "hot"), derive_keypair(1, "other").ss58_address
VALUES: dict[str, Any] = {"integer": NETUID, "number": 1, "string": OTHER, "boolean": True, "array": [], "object": {}}
COSTLY = ("transfer", "transfer_all", "burned_register", "swap_hotkey", "root_register")


def given(schema: dict[str, Any]) -> Any:
    kind = schema.get("type") or next(option["type"] for option in schema["anyOf"])
    return VALUES[kind if isinstance(kind, str) else kind[0]]


def intent(op: str) -> bt.Intent:
    """With whatever it asks for, on our own subnet. Raises what the SDK raises for arguments that make no sense."""
    schema = REGISTRY[op].json_schema()
    return build(op, {name: given(schema["properties"][name]) for name in schema["required"]})


def test_of_all_that_the_sdk_can_do_a_node_does_two_things() -> None:
    allowed, refused = set(), set()
    for op in REGISTRY:
        try:
            made = bt.SetWeights(NETUID, weights={1: 1.0}) if op == "set_weights" else intent(op)
        except (ValueError, bt.BittensorError):
            continue  # it wants more than one value of each kind
        (refused if NodePolicy(NETUID).check(made, None) else allowed).add(op)
    assert allowed == {"serve_axon", "set_weights"} and len(refused) > 60
    assert refused > set(COSTLY)
    assert NodePolicy(NETUID + 1).check(intent("serve_axon"), None), "of another subnet"


class Unsigned(LocalSubstrate):
    """Composes whatever it is told, and knows whether it was asked to sign."""

    signed = 0

    async def query(self, *args: Any, **kwargs: Any) -> Any:
        return 0

    async def compose(self, call: Any) -> Any:
        return call

    async def submit(self, *args: Any, **kwargs: Any) -> bt.ExtrinsicResult:
        self.signed += 1
        return bt.ExtrinsicResult(success=True, message="signed")


async def test_what_costs_money_is_refused_by_our_client_before_it_is_signed(tmp_path: Path) -> None:
    create_chain(
        tmp_path / "chain.sqlite", seed=1, block_s=1.0, netuid=NETUID, tempo=9, weights_rate_limit=1, version_key=1,
        max_uids=8, owner_hotkey=OTHER, owner_coldkey=OTHER, neurons=[GenesisNeuron(OTHER, OTHER, 0.0, False)],
    )  # fmt: skip
    substrate = Unsigned(tmp_path / "chain.sqlite")
    wallet: Any = SimpleNamespace(coldkey=HOTKEY, coldkeypub=HOTKEY, hotkey=HOTKEY)  # even if it had a coldkey
    chain = await BittensorChain.connect(
        netuid=NETUID, network="local", endpoint=None, signer=LocalKey(HOTKEY), cache_dir=tmp_path,
        substrate=cast(bt.Substrate, substrate),
    )  # fmt: skip
    try:
        for op in COSTLY:
            made = intent(op)
            with pytest.raises(ChainFault, match=f"{op} is nothing that a node does") as refused:
                await chain.ask(lambda client, made=made: client.execute(made, wallet))
            assert isinstance(refused.value.__cause__, bt.PolicyError)
    finally:
        await chain.close()
    assert substrate.signed == 0


def test_raw_calls_which_no_policy_sees_are_of_the_node_itself() -> None:
    """The local chain's own tools apart: there the money is play."""
    pallets = [p for p in vars(bt.calls).values() if isinstance(p, type) and p.__module__.startswith("bittensor.")]
    known = {call for pallet in pallets for call in vars(pallet)}
    files = [path.read_text() for path in (ROOT / "distributed_training").rglob("*.py") if path.parent.name != "local"]
    named = {call for text in files if "submit_call" in text for call in re.findall(r"\.(\w+)\(", text)} & known
    assert "set_commitment" in named and "transfer_keep_alive" in known
    assert named <= {"set_commitment", "set_weights", "set_mechanism_weights"}
