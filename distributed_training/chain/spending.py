"""A node never spends: its chain client signs the node's own address, weights and commitment, whatever it is told."""

from __future__ import annotations

import bittensor as bt

OWN_INTENTS = (bt.ServeAxon, bt.SetWeights)


class NodePolicy(bt.Policy):
    """What the SDK checks before it signs. It sees intents only: a raw call is one that our own code names, and there
    the hotkey is no key to anybody's money."""

    def __init__(self, netuid: int) -> None:
        super().__init__(max_spend_tao=0, allowed_netuids=[netuid], allow_raw_calls=True)

    def check(self, intent: bt.Intent, fee: bt.Balance | None) -> list[str]:
        is_own = isinstance(intent.semantic_intent(), OWN_INTENTS)
        return super().check(intent, fee) + ([] if is_own else [f"{intent.op} is nothing that a node does"])
