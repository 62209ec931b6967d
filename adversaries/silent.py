"""Miner: commits its work and sends it to nobody.

It should not pay: nobody includes it. It should not harm: reducers publish what they have and do not wait for it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from attack import Attack
from stage import run

from distributed_training.assembly import Adapters
from distributed_training.averaging import scatter
from distributed_training.errors import NetworkFault
from distributed_training.network.base import Stream
from distributed_training.roles.service import LOG_METHOD

CLASS = "c"
EVIDENCE = "credit"


@dataclass(kw_only=True, eq=False)
class Silent(Attack):
    async def open(self, peer_key: bytes, method: str, timeout_s: float, doors: Adapters) -> Stream:
        if method in (scatter.METHOD, LOG_METHOD):
            raise NetworkFault("nobody gets anything")
        return await super().open(peer_key, method, timeout_s, doors)


if __name__ == "__main__":
    sys.exit(run(Silent))
