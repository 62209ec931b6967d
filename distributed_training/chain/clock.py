"""Waiting for blocks. One poll loop per node; everybody else waits on it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine

from distributed_training.chain.base import Chain, Head
from distributed_training.errors import ChainFault

Then = Callable[[], Coroutine[None, None, None]]
MAX_STEP = 3  # blocks that pass between two looks of a node that runs and whose chain answers


class BlockClock:
    """The chain's head as this node last saw it, on the event loop's clock. It never goes back; an outage is waited
    for."""

    def __init__(self, chain: Chain, block_s: float, *, act_on_head: bool = True) -> None:
        """act_on_head: what may be taken back is begun as soon as a block is seen (`seen`), not when it is final."""
        self.block_s, self.act_on_head = block_s, act_on_head
        self._chain = chain
        self._head = Head(0, 0)
        self._seen_at: float | None = None  # loop time; None: no block seen yet
        self._moved = asyncio.Condition()
        self._due: tuple[int, Then] | None = None
        self._doing: asyncio.Task[None] | None = None
        self.resumed_at = 0  # the head after which this node, or its way to the chain, last stood still; 0: never

    @property
    def now(self) -> Head:
        return self._head

    @property
    def head(self) -> int:
        return self._head.number

    @property
    def finalized(self) -> int:
        return self._head.finalized

    @property
    def acting(self) -> int:
        """The newest block that may be acted on."""
        return self.head if self.act_on_head else self.finalized

    @property
    def steady(self) -> bool:
        """Have blocks come one after the other of late? Not while none comes, and not just after they were away."""
        now = asyncio.get_running_loop().time()
        moving = self._seen_at is not None and now - self._seen_at <= MAX_STEP * self.block_s
        return moving and (self.resumed_at == 0 or self.head >= self.resumed_at + MAX_STEP)

    async def run(self) -> None:
        """Look five times a block until cancelled; the chain is asked only when it does not say by itself."""
        try:
            await self._look()
        finally:
            self.forget_final()

    async def _look(self) -> None:
        while True:
            try:
                head = await self._chain.head()
            except ChainFault:
                await asyncio.sleep(self.block_s)
                continue
            head = Head(max(head.number, self._head.number), max(head.finalized, self._head.finalized))
            if head != self._head:
                if self._seen_at is not None and head.number > self._head.number + MAX_STEP:
                    self.resumed_at = head.number
                if head.number != self._head.number:
                    self._seen_at = asyncio.get_running_loop().time()
                async with self._moved:
                    self._head = head
                    self._moved.notify_all()
                self._do_what_is_due()
            await asyncio.sleep(self.block_s / 5)

    async def reached(self, block: int) -> None:
        """Until the head is at `block`."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._head.number >= block)

    async def final(self, block: int) -> None:
        """Until `block` is finalised."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._head.finalized >= block)

    async def seen(self, block: int) -> None:
        """Until `block` may be acted on: what another block in its place would change must be taken back then."""
        await (self.reached(block) if self.act_on_head else self.final(block))

    async def moved(self, since: Head) -> None:
        """Until the newest or the newest final block is another."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._head != since)

    def once_final(self, block: int, then: Then) -> None:
        """Do `then` beside everything else when `block` is final; it takes the place of what was to be done so."""
        self._due = (block, then)

    def forget_final(self) -> None:
        self._due = None
        if self._doing is not None:
            self._doing.cancel()

    def _do_what_is_due(self) -> None:
        if self._due is not None and self._due[0] <= self.finalized:
            self._doing, self._due = asyncio.create_task(self._due[1]()), None

    def due(self, block: int) -> float:
        """Loop time at which the head reaches `block`, estimated. From any thread."""
        seen_at = self._seen_at
        return math.inf if seen_at is None else seen_at + (block - self._head.number) * self.block_s

    def seconds_until(self, block: int) -> float:
        """Estimated time until the head reaches `block`; 0 when it has."""
        now = asyncio.get_running_loop().time()
        left = (block - self._head.number) * self.block_s - (0.0 if self._seen_at is None else now - self._seen_at)
        return max(0.0, left) if block > self._head.number else 0.0
