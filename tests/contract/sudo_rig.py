"""A subnet of our own on a development node, made with its sudo key: what the chain tests need besides a local chain.

    pytest tests/contract/test_chain.py --chain ws://127.0.0.1:9944 --sudo-uri //Alice

Every wait is measured in the node's own blocks. What its runtime lacks is noted by name; tests that need it skip.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import bittensor as bt
from bittensor.keyfiles import Keypair
from chain_keys import COLDKEY, NAMES, STAKES, VERSION_KEY, key

RAO = 10**9
FUNDS_TAO = 20_000
TRIES = 40  # blocks that a call is tried again for: registrations are few per block, calls have to wait
TEMPO = 10
OPEN = {
    "sudo_set_network_rate_limit": {"rate_limit": 0},
    "sudo_set_start_call_delay": {"delay": 0},
    "sudo_set_tx_rate_limit": {"tx_rate_limit": 0},
    "sudo_set_admin_freeze_window": {"window": 0},
}  # of the whole chain, so that a subnet can be made at once
SETTINGS: dict[str, dict[str, Any]] = {
    "sudo_set_tempo": {"tempo": TEMPO},
    "sudo_set_weights_set_rate_limit": {"weights_set_rate_limit": 3},
    "sudo_set_weights_version_key": {"weights_version_key": VERSION_KEY},
    "sudo_set_serving_rate_limit": {"serving_rate_limit": 0},
    "sudo_set_commit_reveal_weights_enabled": {"enabled": False},
    "sudo_set_network_registration_allowed": {"registration_allowed": True},
    "sudo_set_max_registrations_per_block": {"max_registrations_per_block": 64},
    "sudo_set_target_registrations_per_interval": {"target_registrations_per_interval": 64},
    "sudo_set_min_allowed_weights": {"min_allowed_weights": 1},
}  # of the subnet
Ask = Callable[[bt.Client], Awaitable[Any]]


@dataclass
class RealSubnet:
    """Uids are as in the local chain's genesis: the owner, two validators with stake, two miners."""

    endpoint: str
    sudo_uri: str
    netuid: int = 0
    block_s: float = 12.0
    lacks: dict[str, str] = field(default_factory=dict)  # setting -> why root cannot make it here

    def make(self) -> RealSubnet:
        asyncio.run(self._make())
        return self

    async def set(self, **settings: int) -> None:
        """Change hyperparameters, by the names of SETTINGS without their beginning."""
        async with bt.Subtensor(self.endpoint) as client:
            await self._settle(client, {f"sudo_set_{name}": value for name, value in settings.items()})

    async def _make(self) -> None:
        async with bt.Subtensor(self.endpoint) as client:
            self.block_s = await client.block_time()
            for name, args in OPEN.items():
                await self._as_root(client, "AdminUtils", name, args)
            await self._must(client, "Balances", "transfer_keep_alive", self._sudo(), dest=COLDKEY.ss58_address,
                             value=FUNDS_TAO * RAO)  # fmt: skip
            before = await self._networks(client)
            await self._must(client, "SubtensorModule", "register_network", COLDKEY, hotkey=key("owner").hotkey)
            (self.netuid,) = await self._networks(client) - before
            await self._settle(client, {name: next(iter(args.values())) for name, args in SETTINGS.items()})
            await self._must(client, "SubtensorModule", "start_call", COLDKEY, netuid=self.netuid)
            for name in NAMES[1:]:
                await self._must(client, "SubtensorModule", "burned_register", COLDKEY, netuid=self.netuid,
                                 hotkey=key(name).hotkey)  # fmt: skip
            for name, alpha in STAKES.items():
                await self._must(client, "SubtensorModule", "add_stake", COLDKEY, netuid=self.netuid,
                                 hotkey=key(name).hotkey, amount_staked=round(alpha * RAO))  # fmt: skip
            await self._until_permitted(client)

    def _sudo(self) -> Any:
        return Keypair.create_from_uri(self.sudo_uri)

    async def _networks(self, client: bt.Client) -> set[int]:
        return {int(netuid) for netuid, there in await client.query_map(("SubtensorModule", "NetworksAdded")) if there}

    async def _settle(self, client: bt.Client, values: dict[str, Any]) -> None:
        for name, value in values.items():
            (argument,) = SETTINGS[name]
            await self._as_root(client, "AdminUtils", name, {"netuid": self.netuid, argument: value})

    async def _as_root(self, client: bt.Client, module: str, function: str, args: dict[str, Any]) -> None:
        try:
            inner = await client._substrate.compose(bt.calls.Call(module, function, args))
        except Exception:
            self.lacks[function] = f"this runtime lacks {module}.{function}"
            return
        refusal = await self._submitted(client, bt.calls.Call("Sudo", "sudo", {"call": inner}), self._sudo(), 3)
        if refusal:
            self.lacks[function] = f"this runtime refuses {module}.{function} ({args}): {refusal}"

    async def _must(self, client: bt.Client, module: str, function: str, signer: Any, **args: Any) -> None:
        refusal = await self._submitted(client, bt.calls.Call(module, function, args), signer, TRIES)
        assert not refusal, f"{module}.{function} was refused for {TRIES} blocks: {refusal}"

    async def _submitted(self, client: bt.Client, call: Any, signer: Any, tries: int) -> str:
        """Submit until it is in a block without an error, a block between two tries. What was said last, or nothing."""
        said = ""
        for _ in range(tries):
            result = await client.submit_call(call, signer, signer="coldkey", wait_for_finalization=False)
            if result.success or (result.error is not None and result.error.code.value == "already_exists"):
                return ""
            said = result.message
            await client.wait_for_block()
        return said

    async def _until_permitted(self, client: bt.Client) -> None:
        """For three epochs, however long they are here: the first one after a registration gives no permit yet."""
        graph = await client.subnets.metagraph(self.netuid)
        limit = 3 * (graph.tempo + 2) if graph is not None else TRIES
        for _ in range(limit):
            graph = await client.subnets.metagraph(self.netuid)
            found = {n.hotkey for n in graph.neurons if n.validator_permit} if graph is not None else set()
            if found >= {key(name).hotkey for name in STAKES}:
                return
            await client.wait_for_block()
        raise AssertionError(f"no permit within {limit} blocks")
