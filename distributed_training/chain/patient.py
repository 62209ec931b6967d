"""A chain that is waited for: what keeps a running node alive while nobody answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from distributed_training.chain.base import Chain, Head
from distributed_training.errors import ChainUnreachable
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.types import Field, Roster, SubnetParams

T = TypeVar("T")

log = logging.getLogger(__name__)


class PatientChain:
    """`chain.base.Chain` whose reads are asked again, once a block, until somebody answers.

    Only an outage is waited for: other faults, such as a block that does not exist, go up at once. Writes pass through:
    each has a block after which it is worth nothing, and whether a lost one happened is not known.
    """

    def __init__(self, chain: Chain, block_s: float) -> None:
        self._chain, self._pause_s = chain, block_s
        self._outage = Ongoing(
            log, f"the chain cannot be reached, asking again every {block_s:.3g} s", "the chain answers again"
        )

    async def head(self) -> Head:
        return await self._patiently(self._chain.head)

    async def block_hash(self, number: int) -> bytes:
        return await self._patiently(lambda: self._chain.block_hash(number))

    async def roster(self, block: int) -> Roster:
        return await self._patiently(lambda: self._chain.roster(block))

    async def params(self) -> SubnetParams:
        return await self._patiently(self._chain.params)

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        return await self._patiently(lambda: self._chain.weights(block))

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        return await self._chain.commit(fields, until)

    async def serve(self, ip: str, port: int) -> None:
        await self._chain.serve(ip, port)

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        return await self._chain.set_weights(weights, version_key)

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                answer = await read()
            except ChainUnreachable as fault:
                self._outage.begin(fault)  # one line per outage, however many reads meet it
                await asyncio.sleep(self._pause_s)
            else:
                self._outage.end()
                return answer
