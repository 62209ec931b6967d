"""The network seam: authenticated streams of bounded frames between peer keys.

A peer is named by its Ed25519 public key (32 bytes); the transport proves it, so `Stream.peer_key` can be
trusted. What hotkey stands behind it is not the transport's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from distributed_training.errors import DeadlineMissed


class Stream(Protocol):
    """One bidirectional stream of length-prefixed frames. One reader task and one writer task at a time.

    Every read and write has a deadline. The declared length is checked against `max_bytes` *before* anything is
    buffered. After any error the stream is dead; `close` is idempotent and never raises.
    Raises DeadlineMissed (too late), WireError (frame too long), NetworkFault (connection broken or closed).
    """

    @property
    def peer_key(self) -> bytes: ...

    async def read(self, max_bytes: int, timeout_s: float) -> bytes: ...

    async def write(self, frame: bytes, timeout_s: float) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Traffic:
    """Payload bytes in frames, and frames, since the transport started, both roles together."""

    sent: int = 0
    received: int = 0
    frames_sent: int = 0
    frames_received: int = 0


StreamHandler = Callable[[Stream], Awaitable[None]]


class Transport(Protocol):
    """A node's one door to its peers. Cancel-safe: a cancelled call leaves no task behind.

    A handler's exception is logged (PeerFault and NetworkFault in one line, others with the stack), counted in
    `refusals`, and closes that stream; it never reaches the transport's loop.
    """

    @property
    def peer_key(self) -> bytes: ...

    @property
    def traffic(self) -> Traffic: ...

    def serve(self, method: str, handler: StreamHandler) -> None:
        """Answer streams opened under `method`. Call before or after `start`; a method is served once."""
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Close every stream and, where there is one, end the daemon. Idempotent."""
        ...

    def learn(self, peer_key: bytes, address: tuple[str, int]) -> None:
        """Remember where a peer listens, as the chain says. Cheap; dials nothing."""
        ...

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> Stream:
        """Open a stream, dialling the peer first if needed. Raises NetworkFault or DeadlineMissed."""
        ...


@asynccontextmanager
async def deadline(timeout_s: float, what: str) -> AsyncIterator[None]:
    """Bound a block of awaits; being late raises DeadlineMissed naming `what`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise DeadlineMissed(f"{what}: not done within {timeout_s:.1f} s") from None
