"""One stream for each thing that a peer sends: who was cut off comes again before its old stream has ended here, so the
newest goes on. It bounds, too, what is held of that peer while it is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from distributed_training.errors import PeerFault


class Newest:
    """For one event loop. What is keyed by who sends must be keyed by a proven name: nobody ends another's stream."""

    def __init__(self) -> None:
        self._coming: dict[Hashable, asyncio.Timeout] = {}

    def __len__(self) -> int:
        """How many are on their way."""
        return len(self._coming)

    @asynccontextmanager
    async def only(self, key: Hashable) -> AsyncIterator[None]:
        """Ends the block that runs under this key: PeerFault is raised there."""
        former = self._coming.get(key)
        if former is not None and not former.expired():
            former.reschedule(0.0)
        limit = self._coming[key] = asyncio.timeout(None)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise PeerFault("the same comes on another stream") from None
        finally:
            if self._coming.get(key) is limit:
                del self._coming[key]
