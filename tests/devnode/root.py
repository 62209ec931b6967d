"""What a development node lets root, and anybody with money, do that a local chain has no call for.

A bare node has no subnet but its root; `register_network` makes the one there can be, as a chain file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bittensor.keyfiles import Keypair

from distributed_training.chain.local.genesis import (
    GenesisNeuron,
    change_params,
    create_chain,
    fund,
    opened,
    start_clock,
)
from distributed_training.chain.local.store import open_file

if TYPE_CHECKING:
    from devnode.node import DevNode

SUDO_URI = "//Alice"
ALICE_TAO = 1e6
NEW_NETUID = 2  # 0 is the root, and development nodes come with 1
RAO = 10**9
SETTINGS = {
    "sudo_set_tempo": "tempo",
    "sudo_set_weights_set_rate_limit": "weights_rate_limit",
    "sudo_set_weights_version_key": "version_key",
    "sudo_set_serving_rate_limit": "serving_rate_limit",
    "sudo_set_commit_reveal_weights_enabled": "commit_reveal",
    "sudo_set_immunity_period": "immunity_period",
    "sudo_set_min_allowed_weights": "min_allowed_weights",
    "sudo_set_network_registration_allowed": "registration_allowed",
    "sudo_set_stake_threshold": "stake_threshold",
}  # others are accepted and change nothing


def bare_chain(folder: Path, block_s: float, seed: int = 1) -> Path:
    """A chain whose clock runs and whose only neuron is nobody's; Alice is rich."""
    path, alice = folder / "root.sqlite", Keypair.create_from_uri(SUDO_URI).ss58_address
    _create(path, 0, block_s, seed, alice, alice)
    fund(path, alice, ALICE_TAO)
    start_clock(path)
    return path


def _create(path: Path, netuid: int, block_s: float, seed: int, hotkey: str, coldkey: str) -> None:
    create_chain(
        path, seed=seed, block_s=block_s, netuid=netuid, tempo=360, weights_rate_limit=100, version_key=0, max_uids=64,
        owner_hotkey=hotkey, owner_coldkey=coldkey, neurons=[GenesisNeuron(hotkey, coldkey, 0.0, False)],
        serving_rate_limit=50, started=netuid == 0, commit_reveal=netuid != 0,
    )  # fmt: skip


class Root:
    """Calls by name; each returns the name of its error or None. Blocking, but for the change of chains after it."""

    def __init__(self, node: DevNode) -> None:
        self._node = node
        self._sudo = Keypair.create_from_uri(SUDO_URI).ss58_address
        self.next_chain: Path | None = None  # to be opened: a network was registered

    def known(self, module: str, function: str) -> Callable[[str, dict[str, Any]], str | None] | None:
        name = f"{module}_{function}".lower()
        return getattr(self, f"_{name}", None)

    def _sudo_sudo(self, signer: str, args: dict[str, Any]) -> str | None:
        if signer != self._sudo:
            return "RequireSudo"
        inner = args["call"]
        function = inner["call_function"]
        given = {arg["name"]: arg["value"] for arg in inner["call_args"]}
        if function == "force_set_balance":
            self._add(address(given["who"]), int(given["new_free"]) - self._balance(address(given["who"])))
        if function in SETTINGS:
            value = next(value for name, value in given.items() if name != "netuid")
            change_params(self._node.path, **{SETTINGS[function]: value})
        return None

    def _balances_transfer_keep_alive(self, signer: str, args: dict[str, Any]) -> str | None:
        amount = int(args["value"])
        if self._balance(signer) < amount:
            return "InsufficientBalance"
        self._add(signer, -amount)
        self._add(address(args["dest"]), amount)
        return None

    def _subtensormodule_register_network(self, signer: str, args: dict[str, Any]) -> str | None:
        """The chain goes on in a new file, at the same time and with the same money."""
        node, path = self._node, self._node.path.with_name("subnet.sqlite")
        if path.exists():
            return "SubnetLimitReached"
        params = node.chain.params
        _create(path, NEW_NETUID, params.block_s, params.seed, args["hotkey"], signer)
        with opened(node.path) as old, old.transaction() as rows:
            head, money = rows.block - 1, rows.scan("balance")
        with closing(open_file(path)) as new:
            for name, value in (("genesis_time", old.genesis_time()), ("closed", head)):
                new.execute("update meta set value = ? where name = ?", (json.dumps(value), name))
        for account, rao in money.items():
            fund(path, account, rao / RAO)
        self.next_chain = path
        return None

    def _subtensormodule_start_call(self, signer: str, args: dict[str, Any]) -> str | None:
        change_params(self._node.path, started=True)
        return None

    def _balance(self, account: str) -> int:
        with opened(self._node.path) as store, store.transaction() as rows:
            return rows.get("balance", account, 0)

    def _add(self, account: str, rao: int) -> None:
        fund(self._node.path, account, rao / RAO)


def address(value: Any) -> str:
    """An account from a MultiAddress."""
    return value if isinstance(value, str) else next(iter(value.values()))
