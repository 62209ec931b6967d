"""What a node needs of the local chain beyond what the SDK asks of it."""

from __future__ import annotations

from typing import Any

import bittensor as bt

from distributed_training.chain.local.store import ChainParams
from distributed_training.chain.local.substrate import LocalSubstrate


class DevChain(LocalSubstrate):
    @property
    def params(self) -> ChainParams:
        return self._params

    @property
    def netuid(self) -> int:
        return self._params.netuid

    @property
    def started(self) -> bool:
        return self._store.genesis_time() is not None

    def apply(self, call: Any, signer: str) -> tuple[int, bt.ExtrinsicResult]:
        """Blocking: an extrinsic whose signature was checked. The block it went to, 0 for none, and its result."""
        return self._apply(call, signer)

    def hash_of(self, block: int) -> str:
        """Also of the next one."""
        return "0x" + self._store.block_hash(block).hex()

    def next_block(self) -> int:
        """Blocking. The block that a write would go to."""
        with self._store.transaction() as rows:
            return rows.block
