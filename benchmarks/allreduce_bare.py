"""The same bytes over the same streams and nothing else: what the all-reduce would take if its work were none.

Every miner sends slice j to j, waits until it has its own from everybody, and fetches all other slices; who observes
only fetches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from distributed_training.network.base import Stream
from distributed_training.network.libp2p import Libp2pTransport

SEND, FETCH = "bare-send", "bare-fetch"
FRAME_BYTES = 1 << 18
PATIENCE_S = 600.0


class Bare:
    def __init__(self, plan: dict[str, Any], me: dict[str, Any], transport: Libp2pTransport, chain: Any) -> None:
        self._plan, self._me, self._transport, self._chain = plan, me, transport, chain
        self._miners = [node for node in plan["nodes"] if node["kind"] == "miner"]
        self._came, self._all = 0, asyncio.Event()
        self._number = 0
        self._frame = bytes(range(256)) * (FRAME_BYTES // 256)
        transport.serve(SEND, self._on_send)
        transport.serve(FETCH, self._on_fetch)
        transport.serve("hello", self._on_hello)

    async def _on_hello(self, stream: Stream) -> None:
        """Somebody dials before anything is timed."""

    def _frames(self) -> Sequence[memoryview]:
        """Of a slice."""
        size, view = self._plan["slice_bytes"], memoryview(self._frame)
        return [view[: min(FRAME_BYTES, size - at)] for at in range(0, size, FRAME_BYTES)]

    async def _on_send(self, stream: Stream) -> None:
        await self._read(stream)
        await stream.write(b"ok", PATIENCE_S)
        self._came += 1
        if self._came == len(self._miners) - 1:
            self._all.set()

    async def _on_fetch(self, stream: Stream) -> None:
        await self._all.wait()
        for frame in self._frames():
            await stream.write(frame, PATIENCE_S)  # type: ignore[arg-type]
        await stream.read(2, PATIENCE_S)

    async def _read(self, stream: Stream) -> None:
        for frame in self._frames():
            if len(await stream.read(len(frame), PATIENCE_S)) != len(frame):
                raise RuntimeError("bare: another number of bytes")

    async def exchange(self) -> dict[str, Any]:
        """Seconds from when all begin until this node has everything."""
        self._came, self._number = 0, self._number + 1
        self._all.clear()
        await self._chain.meet("bare", self._number)
        began = time.monotonic()
        others = [node for node in self._miners if node is not self._me]
        async with asyncio.TaskGroup() as tasks:
            if self._me["kind"] == "miner":
                for node in others:
                    tasks.create_task(self._send(node))
            for node in others:
                tasks.create_task(self._fetch(node))
        ended = time.monotonic()
        await self._chain.meet("bared", self._number)
        return {"began": began, "ended": ended}

    async def _send(self, node: dict[str, Any]) -> None:
        stream = await self._transport.open(bytes.fromhex(node["peer_key"]), SEND, PATIENCE_S)
        for frame in self._frames():
            await stream.write(frame, PATIENCE_S)  # type: ignore[arg-type]
        await stream.read(2, PATIENCE_S)
        await stream.close()

    async def _fetch(self, node: dict[str, Any]) -> None:
        stream = await self._transport.open(bytes.fromhex(node["peer_key"]), FETCH, PATIENCE_S)
        await self._read(stream)
        await stream.write(b"ok", PATIENCE_S)
        await stream.close()
