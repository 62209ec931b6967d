"""What a subnet asks of weights, and how they get there: the SDK's way, and the raw calls where a runtime is older."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import bittensor as bt

from distributed_training.errors import named
from distributed_training.protocol.rules.clock import scheduled_epoch
from distributed_training.protocol.rules.weights import U16_MAX
from distributed_training.protocol.types import SubnetParams

log = logging.getLogger(__name__)

LACKING = (LookupError, ValueError)  # so the SDK says that a runtime has no such storage item, runtime call or call
# The runtime's record -> our field; all of them are in records since spec 293.
HYPERPARAMETERS = {
    "min_allowed_weights": "min_allowed_weights",
    "max_weights_limit": "max_weight_limit",
    "commit_reveal_weights_enabled": "commit_reveal",
    "commit_reveal_period": "reveal_period",
    "weights_version": "version_key",
}


class WeightCalls:
    """Of one hotkey on one subnet. What the runtime lacks is said once, and done without."""

    def __init__(self, netuid: int, keypair: bt.Signer) -> None:
        self._netuid, self._keypair = netuid, keypair
        self._told: set[str] = set()

    async def params(self, client: bt.Client) -> SubnetParams | None:
        """None: no such subnet. Raises what the SDK raises."""
        graph = await client.subnets.metagraph(self._netuid, commitments=False)
        if graph is None:
            return None
        raw = {"weights_rate_limit": 100, **graph.raw}
        found = {ours: int(raw[name]) for name, ours in HYPERPARAMETERS.items() if name in raw}
        if lacking := sorted(set(HYPERPARAMETERS) - set(raw)):
            self._say(f"this runtime does not say {', '.join(lacking)}: the chain's defaults are taken")
        try:
            epoch = await client.epochs.next_epoch_start_block(netuid=self._netuid)
        except LACKING:  # then epochs run by a fixed schedule
            epoch = scheduled_epoch(graph.block, graph.tempo, self._netuid)
        return SubnetParams(
            netuid=self._netuid,
            tempo=graph.tempo,
            weights_rate_limit=int(raw["weights_rate_limit"]),
            block_s=await client.block_time(),
            owner_hotkey=graph.owner_hotkey,
            owner_coldkey=graph.owner_coldkey,
            **{**found, "commit_reveal": bool(found.get("commit_reveal"))},
            next_epoch_block=epoch,
            max_uids=graph.max_uids,
        )

    async def submit(
        self, client: bt.Client, weights: Mapping[int, float], version_key: int, **options: Any
    ) -> bt.ExtrinsicResult:
        """It commits where the subnet wants that; the raw calls are for plain subnets. `options` are the submission's.

        Raises what the SDK raises.
        """
        module, row = bt.calls.SubtensorModule, {uid: weight for uid, weight in sorted(weights.items()) if weight > 0}
        intent = bt.SetWeights(self._netuid, weights=row, version_key=version_key)
        try:
            return await client.execute(intent, self._keypair, wait_for_finalization=False, **options)
        except LACKING as error:
            why = named(error)
        best = max(row.values())
        uids, values = list(row), [round(weight / best * U16_MAX) for weight in row.values()]
        self._say(f"this runtime is older than the SDK's SetWeights ({why}): weights go through the raw calls")
        how: dict[str, Any] = {"signer": "hotkey", "wait_for_finalization": False, **options}
        try:
            call = module.set_mechanism_weights(self._netuid, 0, uids, values, version_key)
            return await client.submit_call(call, self._keypair, **how)
        except LACKING:
            call = module.set_weights(self._netuid, uids, values, version_key)
            return await client.submit_call(call, self._keypair, **how)

    def _say(self, text: str) -> None:
        if text not in self._told:
            log.warning("%s", text)
        self._told.add(text)
