"""The newest block and the newest final one, as the chain pushes them: no request for a block that comes in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import bittensor as bt

from distributed_training.chain.answers import guarded
from distributed_training.chain.base import Head
from distributed_training.chain.line import CLOSE_TIMEOUT_S, READ_TIMEOUT_S, Line, Link
from distributed_training.errors import ChainFault, ChainUnreachable

SILENT_BLOCKS = 2.5  # without a block: a subscription may be dead, so the chain is asked
LEAST_SILENCE_S = 0.25
STUCK_BLOCKS = 10  # without a new block: this node may no longer hear of any, another one may
LEAST_STUCK_S = 3.0  # so long a busy machine may be without one


class Heads:
    """Numbers never fall: a reorganisation is awaited, and so is a node that is behind the last one."""

    def __init__(self, line: Line, block_s: float) -> None:
        self._line, self.block_s = line, block_s
        self._silence_s = max(LEAST_SILENCE_S, SILENT_BLOCKS * block_s)
        self.stuck_s = max(LEAST_STUCK_S, STUCK_BLOCKS * block_s)
        self._numbers = {False: 0, True: 0}  # by: final
        self._good_until = {False: 0.0, True: 0.0}  # loop time
        self._grew_at = 0.0  # loop time at which there was a new block
        self._polling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def number(self) -> int:
        return self._numbers[False]

    async def head(self) -> Head:
        """What was pushed; asked for, at most once a block, while nothing is."""
        async with self._polling:
            if asyncio.get_running_loop().time() >= min(self._good_until.values()):
                await self._line.ask(self._poll)
        self._tasks = self._tasks or [asyncio.create_task(self._follow(final)) for final in (False, True)]
        return Head(self.number, min(self._numbers.values()))

    def doubt(self) -> None:
        """Ask at the next look."""
        self._good_until[False] = 0.0

    def _see(self, number: int, final: bool, for_s: float) -> None:
        """A block is there; it may be taken for the newest one for so long."""
        now = asyncio.get_running_loop().time()
        self._grew_at = now if number > self.number else self._grew_at
        if number >= self._numbers[final]:
            self._numbers[final], self._good_until[final] = number, now + for_s

    async def close(self) -> None:
        for _ in range(4):  # the SDK may swallow it, so again; and each says goodbye to a node that may not answer
            left = {task for task in self._tasks if not task.done()}
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=CLOSE_TIMEOUT_S / 4)

    async def _poll(self, link: Link) -> None:
        number, final = await asyncio.gather(link.block(), link.finalized_block())
        if number < self._numbers[True]:
            await self._line.check(link)
            raise ChainUnreachable(f"it is at block {number}, and block {self._numbers[True]} was final already")
        self._see(max(number, self.number), False, self.block_s)
        self._see(max(final, self._numbers[True]), True, self.block_s)

    async def _follow(self, final: bool) -> None:
        """Until cancelled: one subscription after the other, over whatever connection there is."""
        while True:
            if (link := self._line.link) is not None and not link.ended:
                try:
                    await self._subscribed(link, final)
                except TimeoutError:  # silent: a new one may not be
                    if (now := asyncio.get_running_loop().time()) <= self._grew_at + self.stuck_s:
                        continue
                    self._grew_at = now
                    await asyncio.sleep(self.block_s)  # an answer on its way would hold up the close
                    await self._line.broke(link)
                except ChainUnreachable:
                    await self._line.broke(link)
                except ChainFault:
                    pass  # this node has none; it is polled
            await asyncio.sleep(self.block_s)

    async def _subscribed(self, link: Link, final: bool) -> None:
        async with aclosing(cast(AsyncGenerator[bt.BlockHeader], link.blocks(finalized=final))) as blocks:
            while True:
                async with asyncio.timeout(self._silence_s):
                    header = await guarded(anext(blocks), 2 * self._silence_s + READ_TIMEOUT_S)
                self._see(header.number, final, self._silence_s)
