"""Length-prefixed frames with bounds and deadlines over anything that looks like an asyncio reader and writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from distributed_training.errors import DeadlineMissed, NetworkFault, WireError, said
from distributed_training.network.base import Traffic
from distributed_training.network.line import SMALL_BYTES, Lane

HEADER_BYTES = 4  # big-endian length
MAX_FRAME_BYTES = (1 << 32) - 1
CHUNK_BYTES = 512 * 1024  # measured: larger writes are no faster, smaller ones cost CPU
FIRST_BYTES = 64 * 1024 - HEADER_BYTES  # of a frame go with its header
FLUSH_S = 5.0  # what a closed stream may still take to send


class EndOfStream(NetworkFault):
    """The peer closed the stream between two frames: the usual end of a conversation."""


class Reader(Protocol):
    async def readexactly(self, n: int, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes | memoryview, /) -> None: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...


class FrameStream:
    """The Stream of both adapters. `abort` drops the connection at once, unsent bytes included."""

    def __init__(
        self, peer_key: bytes, reader: Reader, writer: Writer, abort: Callable[[], None], traffic: Traffic
    ) -> None:
        self._peer_key = peer_key
        self._reader = reader
        self._writer = writer
        self._abort = abort
        self._traffic = traffic
        self._closed = False
        self.source: str | None = None
        self.spoken = False  # the peer has sent a whole frame
        self.meter: Callable[[int], None] | None = None  # told the size of each frame first; may refuse it

    @property
    def peer_key(self) -> bytes:
        return self._peer_key

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        """The next frame. See `network.base.Stream` for the errors."""
        self._check_open()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                size = int.from_bytes(await self._header(), "big")
                if size > max_bytes:
                    raise WireError(f"a frame of {size} bytes was announced, at most {max_bytes} are allowed here")
                if self.meter is not None:
                    self.meter(HEADER_BYTES + size)
                lane = self._traffic.line.down
                with lane.rate.moving(size):
                    frame = await self._body(lane, size, limit)
        except BaseException as error:
            self._break(error, "a frame from", timeout_s)
            raise
        self.spoken = True
        self._traffic.receiving(self._peer_key, size)
        return frame

    async def _body(self, lane: Lane, size: int, limit: asyncio.Timeout) -> bytes:
        """What is not read yet waits at the peer: buffers on the way hold about a mebibyte of a stream. What came is
        paid for: who announces a frame and sends none of it takes nothing of our line."""
        if not lane.part or size <= SMALL_BYTES:
            frame = await self._reader.readexactly(size)
            lane.pay(HEADER_BYTES + size)
            return frame
        parts: list[bytes] = []
        for offset in range(0, size, lane.part):
            part = min(lane.part, size - offset)
            parts.append(await self._reader.readexactly(part))
            await _turn(lane, part, limit)
        return b"".join(parts)

    async def _header(self) -> bytes:
        try:
            return await self._reader.readexactly(HEADER_BYTES)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise EndOfStream(f"{self._peer_key.hex()[:12]} closed the stream") from error

    async def write(self, frame: bytes, timeout_s: float) -> None:
        """Send one frame. Returns when all but the last few buffers have left; the deadline covers the whole frame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise ValueError(f"a frame holds at most {MAX_FRAME_BYTES} bytes, not {len(frame)}")
        self._check_open()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                if self.meter is not None:
                    self.meter(HEADER_BYTES + len(frame))
                lane = self._traffic.line.up
                with lane.rate.moving(len(frame)):
                    await self._send(lane, memoryview(frame), limit)
        except BaseException as error:
            self._break(error, "a write to", timeout_s)
            raise
        self._traffic.sending(self._peer_key, len(frame))

    async def _send(self, lane: Lane, frame: memoryview, limit: asyncio.Timeout) -> None:
        header, step = len(frame).to_bytes(HEADER_BYTES, "big"), lane.part or CHUNK_BYTES
        for offset in range(0, max(1, len(frame)), step):
            part = frame[offset : offset + step]
            if len(frame) <= SMALL_BYTES:
                lane.pay(HEADER_BYTES + len(part))
            else:
                await _turn(lane, len(part), limit)
            if offset == 0:  # one system call for a small frame, no copy of a large one
                self._writer.write(header + part[:FIRST_BYTES])
                part = part[FIRST_BYTES:]
            if len(part):
                self._writer.write(part)
            await self._writer.drain()

    async def close(self) -> None:
        """End the stream; what was written is still sent, for at most FLUSH_S seconds."""
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.close()
            if self._abort != self._writer.close:
                asyncio.get_running_loop().call_later(FLUSH_S, self.abort)
        except (OSError, RuntimeError):  # the connection or the loop went first: nothing left to close
            pass

    def abort(self) -> None:
        """End the stream at once. Idempotent."""
        self._closed = True
        try:
            self._abort()
        except AttributeError:  # CPython 3.11: a socket that was closed and has sent its rest knows no loop any more
            pass

    def _check_open(self) -> None:
        if self._closed:
            raise NetworkFault(f"the stream with {self._peer_key.hex()[:12]} is closed")

    def _break(self, error: BaseException, what: str, timeout_s: float) -> None:
        """Raises what `error` means here, if it is another one. After any, cancellation included, the position in the
        byte stream is unknown: the stream is dead."""
        self.abort()
        peer = self._peer_key.hex()[:12]
        if isinstance(error, TimeoutError):
            raise DeadlineMissed(f"{what} {peer} took longer than {timeout_s:.3g} s") from error
        if isinstance(error, (asyncio.IncompleteReadError, OSError)):
            raise NetworkFault(f"{what} {peer}: the connection ended ({_describe(error)})") from error


async def _turn(lane: Lane, size: int, limit: asyncio.Timeout) -> None:
    """Under a cap of ours: what it makes a frame wait is not the peer's time."""
    if lane.part:
        until = limit.when()
        limit.reschedule(None)
        waited = await lane.turn(size)
        limit.reschedule(None if until is None else until + waited)


def _describe(error: Exception) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return f"after {len(error.partial)} of {error.expected} bytes"
    return said(error)
