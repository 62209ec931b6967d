"""A connection to the daemon, without most copies that asyncio's streams make: what is read goes from the socket into
the bytes that are handed over, and what is written waits where it lies until the socket takes it.
"""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any, cast

HELD_BYTES = 64 * 1024  # that nobody has asked for; then nothing more is taken from the socket
PIECE_BYTES = 64 * 1024  # handed to the transport at a time, which copies what the socket does not take
_scratch = threading.local()


class Connection(asyncio.BufferedProtocol):
    """Reader and writer of one connection, in the place of those that asyncio made. One task reads, one writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        former: Any = reader
        self._former = reader, writer  # a writer that nobody holds closes its transport
        self._transport = cast(asyncio.Transport, writer.transport)
        self._held, self._ended, self._error = bytearray(former._buffer), bool(former._eof), reader.exception()
        self._wanted, self._filled = 0, 0
        self._target: memoryview | None = None  # of a long read, filled up to `_filled`
        self._whole = io.BytesIO()  # whose memory that is: it gives what it holds as bytes, without a copy
        self._arrived: asyncio.Future[None] | None = None
        self._pending: memoryview | None = None
        self._lost, self._room = False, asyncio.Event()
        self._room.set()
        self._transport.set_protocol(self)
        self._take()

    # --- reading ------------------------------------------------------------------------------------

    async def readexactly(self, n: int, /) -> bytes:
        """Raises IncompleteReadError at the end of the connection, OSError where it broke."""
        if len(self._held) < n and not self._ended:
            await self._arrive(n)
        if self._target is not None:
            self._target = self._target.release()
            if self._filled == n:
                return self._whole.getvalue()
            self._held = bytearray(self._whole.getvalue()[: self._filled])
        if len(self._held) >= n:
            found = bytes(memoryview(self._held)[:n])
            del self._held[:n]
            self._take()
            return found
        if self._error is not None:
            raise self._error
        partial, self._held = bytes(self._held), bytearray()
        raise asyncio.IncompleteReadError(partial, n)

    async def _arrive(self, n: int) -> None:
        """Until so many bytes are there, or no more come."""
        self._wanted = n
        self._aim()
        self._arrived = asyncio.get_running_loop().create_future()
        self._take()
        try:
            await self._arrived
        finally:
            self._arrived, self._wanted = None, 0

    def _aim(self) -> None:
        """What is still to come of a long read goes where it will be read from; only once some of it is here: who
        announces a frame and sends none of it takes no memory."""
        if not HELD_BYTES <= len(self._held) < self._wanted:
            return
        self._whole, self._filled = io.BytesIO(), len(self._held)
        self._whole.seek(self._wanted - 1)
        self._whole.write(b"\0")
        self._target = self._whole.getbuffer()
        self._target[: self._filled] = self._held
        self._held = bytearray()

    def _take(self) -> None:
        if len(self._held) < HELD_BYTES and not self._transport.is_closing():
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is not None and self._filled < len(self._target):
            return self._target[self._filled :]
        if not hasattr(_scratch, "view"):
            _scratch.view = memoryview(bytearray(HELD_BYTES))
        return _scratch.view

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is not None and self._filled < len(self._target):
            self._filled += nbytes
            if self._filled == len(self._target):
                self._wake()
            return
        self._held += _scratch.view[:nbytes]
        if self._arrived is not None and self._target is None:
            self._aim()
            if len(self._held) >= self._wanted:
                self._wake()
        if len(self._held) >= HELD_BYTES:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """What we write still goes out."""
        self._ended = True
        self._wake()
        return True

    # --- writing ------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, /) -> None:
        """What is long goes out in `drain`, and must not change until then."""
        if self._pending is not None or len(data) <= PIECE_BYTES:
            self._flush()
            self._transport.write(data)
        else:
            self._pending = memoryview(data)

    async def drain(self) -> None:
        """Raises OSError where the connection broke."""
        while True:
            if self._error is not None:
                raise self._error
            if self._transport.is_closing():
                await asyncio.sleep(0)  # what broke it is told in the next turn
            await self._room.wait()
            if self._lost:
                raise ConnectionResetError("the connection is lost")
            if self._pending is None:
                return
            piece, rest = self._pending[:PIECE_BYTES], self._pending[PIECE_BYTES:]
            self._pending = rest if len(rest) else None
            self._transport.write(piece)

    def _flush(self) -> None:
        if self._pending is not None:
            self._transport.write(self._pending)
            self._pending = None

    def close(self) -> None:
        """What was written is still sent."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Idempotent."""
        if not self._lost:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._ended = True
        self._error = self._error or exc
        self._wake()
        self._room.set()
