"""One round after the other, whatever happens to this node: try again, join again, or stop and say why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from distributed_training.errors import (
    DeviceLost,
    HotkeyTaken,
    LocalFault,
    SlicesMissing,
    StateDiverged,
    first_of,
    named,
)
from distributed_training.roles.follower import Follower
from distributed_training.roles.joining.bootstrap import Start
from distributed_training.roles.miner import GaveUp
from distributed_training.roles.parts import Parts
from distributed_training.roles.trouble import tell

log = logging.getLogger(__name__)

MAX_TRIES = 5  # at one round


class Node(Protocol):
    async def run_round(self) -> None: ...


class Rounds:
    """The state moves only at the very end of a round, so a round that broke off can be run again."""

    def __init__(self, parts: Parts, follower: Follower, find_start: Callable[[int | None], Awaitable[Start]]) -> None:
        """find_start: a state to go on from as for a node that joins, given the round that ours cannot pass."""
        self._p, self._follower, self._find_start = parts, follower, find_start
        self._tries: dict[int, int] = {}  # of the round we are at
        self._joined_again: int | None = None

    async def one(self, node: Node) -> None:
        """Bring the follower one round further, or back to a state from which it can go on. Raises what must end us."""
        index = self._follower.index
        try:
            await node.run_round()
        except* (GaveUp, HotkeyTaken, DeviceLost):
            raise
        except* StateDiverged as group:
            await self._join_again(first_of(group))
        except* (LocalFault, MemoryError) as group:
            await self._pause(index, first_of(group))

    async def _join_again(self, error: Exception) -> None:
        """Once for each round it happens in: from a snapshot, forward through outputs that are checked anew."""
        index = self._follower.index
        tell(self._p, index, "state", error)
        if self._joined_again is not None and index <= self._joined_again:
            raise GaveUp(f"{error}; joining again did not help") from error
        former = self._follower.root
        try:
            start = await self._find_start(index if isinstance(error, SlicesMissing) else None)
        except (LocalFault, MemoryError) as trouble:  # of our own, and it may pass
            await self._pause(index, trouble)
            return
        self._joined_again = index
        log.warning("joining again at round %d from %s", start.index, start.source)
        self._follower.start_from(start.index, start.state, trusted=start.trusted)
        if (start.index, self._follower.root) == (index, former):
            raise GaveUp(f"{error}; there is no other state to join from") from error

    async def _pause(self, index: int, error: Exception) -> None:
        tell(self._p, index, "round", error)
        self._tries = {index: self._tries.get(index, 0) + 1}
        if self._tries[index] >= MAX_TRIES:
            raise GaveUp(f"round {index} failed {MAX_TRIES} times: {named(error)}") from error
        await asyncio.sleep(self._p.clock.block_s)
