"""A transport that breaks on purpose: the real one inside, one planned fault at one exact frame.

It knows the protocol from the outside only: the method of a stream, and that every request begins with its round.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from sabotage import Sabotage

from distributed_training.errors import NetworkFault, WireError
from distributed_training.network.base import Stream, StreamHandler, Transport
from distributed_training.network.frames import HEADER_BYTES, FrameStream
from distributed_training.protocol.wire import decode_request

SCATTER, SLICE = "scatter", "slice"
CHUNKS_BEFORE_FAULT = 3  # of a slice, at mid-scatter
ACK = b"ok"  # a reducer's word to a sender: every chunk is in
FIRST_CHUNK_FRAME = 3  # of a scatter stream: request, signed record, digests, then chunks
DELIVERED = 2  # senders whose slices are in, at "reducing"
SLOW_BYTES_PER_S = 16.0


def round_of(request: bytes) -> int | None:
    """The round a stream's first frame is about."""
    try:
        payload = decode_request(request)[2]
    except WireError:
        return None
    return int.from_bytes(payload[:4], "little") if len(payload) >= 4 else None


class SaboteurStream:
    """`network.base.Stream`; `incoming` when the peer opened it."""

    def __init__(
        self,
        inner: Stream,
        sabotage: Sabotage,
        method: str,
        *,
        incoming: bool,
        on_delivered: Callable[[int | None], None] = lambda round_index: None,
    ) -> None:
        """`on_delivered` hears the round whenever a sender was told that its whole slice is in."""
        self._inner, self._sabotage, self._method, self._incoming = inner, sabotage, method, incoming
        self._on_delivered = on_delivered
        self._reads = self._writes = 0
        self.round: int | None = None

    @property
    def peer_key(self) -> bytes:
        return self._inner.peer_key

    @property
    def source(self) -> str | None:
        return self._inner.source

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        await self._usable()
        frame = await self._inner.read(max_bytes, timeout_s)
        if self._sabotage.active("slow"):
            await self._slowly(len(frame), timeout_s)
        if self._incoming and self._reads == 0:
            self.round = round_of(frame)
        if not self._incoming and frame:
            self._sabotage.ledger.settle(id(self))  # an answer acknowledges what was sent before it
            if self._method == SLICE and self._reads == 0:
                self._sabotage.reach("mid-fetch", self.round)
        self._reads += 1
        await self._usable()
        return frame

    async def write(self, frame: bytes, timeout_s: float) -> None:
        if not self._incoming and self._writes == 0:
            self.round = round_of(frame)
        self._reach()
        await self._usable()
        frame = self._told(frame)
        self._sabotage.ledger.hand(id(self), len(frame))
        if self._sabotage.active("slow") and isinstance(self._inner, FrameStream):
            await self._drip(self._inner, frame, timeout_s)
        else:
            await self._inner.write(frame, timeout_s)
        self._writes += 1
        if self._method == SCATTER and self._incoming and frame == ACK:
            self._on_delivered(self.round)

    async def close(self) -> None:
        self._sabotage.ledger.settle(id(self))
        await self._inner.close()

    def _reach(self) -> None:
        """The points that lie before a frame that is about to leave."""
        if self._method == SCATTER and not self._incoming:
            if self._writes == 0:
                self._sabotage.reach("before-scatter", self.round)
            if self._writes == FIRST_CHUNK_FRAME + CHUNKS_BEFORE_FAULT:
                self._sabotage.reach("mid-scatter", self.round)
        if self._method == SLICE and self._incoming and self._writes == 1:
            self._sabotage.reach("mid-serve", self.round)

    def _told(self, frame: bytes) -> bytes:
        """The frame as it is sent: itself, or the planned lie."""
        lies = self._sabotage.lies
        sends_chunk = self._method == SCATTER and not self._incoming and self._writes >= FIRST_CHUNK_FRAME
        serves = self._method == SLICE and self._incoming and self._writes >= 1
        if sends_chunk and lies("before-scatter", self.round):
            return frame + b"\0"
        if sends_chunk and lies("mid-scatter", self.round):
            return frame[:-1] + bytes([frame[-1] ^ 1])
        if serves and frame and lies("after-output", self.round):
            return frame[:-1] + bytes([frame[-1] ^ 1])
        if serves and lies("mid-serve", self.round):
            return frame * 2 + b"\0"
        return frame

    async def _usable(self) -> None:
        if self._sabotage.active("cut"):
            await self.close()
            raise NetworkFault("the line is cut")

    async def _slowly(self, count: int, timeout_s: float) -> None:
        await asyncio.sleep(min(timeout_s, count / SLOW_BYTES_PER_S))

    async def _drip(self, inner: FrameStream, frame: bytes, timeout_s: float) -> None:
        """A byte at a time, under the frame stream: the peer always sees progress, and never a whole frame."""
        data = len(frame).to_bytes(HEADER_BYTES, "big") + frame
        writer: Any = inner._writer
        try:
            async with asyncio.timeout(timeout_s):
                for at in range(len(data)):
                    writer.write(data[at : at + 1])
                    await writer.drain()
                    if self._sabotage.active("slow"):
                        await asyncio.sleep(1 / SLOW_BYTES_PER_S)
        except (TimeoutError, OSError) as error:
            inner.abort()
            raise NetworkFault(f"too slow: {error!r}") from None
        except BaseException:
            inner.abort()
            raise


class SaboteurTransport:
    """`network.base.Transport` around another: it stands before `open` and `serve`, all else is the real one's."""

    def __init__(self, inner: Transport, sabotage: Sabotage) -> None:
        self._inner, self._sabotage = inner, sabotage
        self._delivered: Counter[int | None] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def serve(self, method: str, handler: StreamHandler) -> None:
        async def handle(stream: Stream) -> None:
            if self._sabotage.active("cut"):
                await stream.close()
                raise NetworkFault("the line is cut")
            wrapped = SaboteurStream(stream, self._sabotage, method, incoming=True, on_delivered=self._on_delivered)
            try:
                await handler(wrapped)
            finally:
                self._sabotage.ledger.settle(id(wrapped))

        self._inner.serve(method, handle)

    def _on_delivered(self, round_index: int | None) -> None:
        self._delivered[round_index] += 1
        if self._delivered[round_index] == DELIVERED:
            self._sabotage.reach("reducing", round_index)

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> Stream:
        if self._sabotage.active("cut"):
            raise NetworkFault("the line is cut")
        stream = await self._inner.open(peer_key, method, timeout_s)
        return SaboteurStream(stream, self._sabotage, method, incoming=False)
