"""The network seam: authenticated streams of bounded frames between peer keys.

A peer is named by its Ed25519 public key (32 bytes); the transport proves it, so `Stream.peer_key` can be
trusted. What hotkey stands behind it is not the transport's business.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from distributed_training.errors import DeadlineMissed
from distributed_training.network.budgets import Budget
from distributed_training.network.line import Line


class Stream(Protocol):
    """One bidirectional stream of length-prefixed frames. One reader task and one writer task at a time.

    Every read and write has a deadline, which is for the peer: what our own line's cap makes it wait is added to it.
    The declared length is checked against `max_bytes` *before* anything is buffered. After any error the stream is
    dead; `close` is idempotent and never raises.
    Raises DeadlineMissed (too late), WireError (frame too long), NetworkFault (connection broken or closed); on a
    stream that the peer opened also PeerFault (its budget is used up).
    """

    @property
    def peer_key(self) -> bytes: ...

    @property
    def source(self) -> str | None:
        """The IPv4 address that a stream which the peer opened comes from. None: unknown, or we opened it."""
        ...

    async def read(self, max_bytes: int, timeout_s: float) -> bytes: ...

    async def write(self, frame: bytes, timeout_s: float) -> None: ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Traffic:
    """Payload bytes in frames by kind of peer, and frames sent, since the transport started, both directions apart; and
    the line that all of them take."""

    frames_sent: int = 0
    sent_to: Counter[str] = field(default_factory=Counter)
    received_from: Counter[str] = field(default_factory=Counter)
    kinds: Mapping[bytes, str] = field(default_factory=dict)  # peer key -> miner, validator, owner; others: stranger
    line: Line = field(default_factory=Line)

    @property
    def sent(self) -> int:
        return self.sent_to.total()

    @property
    def received(self) -> int:
        return self.received_from.total()

    def sending(self, peer_key: bytes, size: int) -> None:
        self.sent_to[self.kinds.get(peer_key, "stranger")] += size
        self.frames_sent += 1

    def receiving(self, peer_key: bytes, size: int) -> None:
        self.received_from[self.kinds.get(peer_key, "stranger")] += size


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

    def admit(self, peers: Collection[bytes], budget: Budget) -> None:
        """From now on each of `peers` has `budget` for the streams it opens here, and all others share one budget.

        Who is over budget is refused early and counted; nobody waits for it. Before the first call nobody has a limit.
        """
        ...

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """Close every stream and, where there is one, end the daemon. Idempotent."""
        ...

    def learn(self, peer_key: bytes, *addresses: tuple[str, int]) -> None:
        """Remember where a peer may listen, best first; what was said before is forgotten. Cheap; dials nothing.

        Nobody has to have proven it: the connection does. A peer that listens nowhere is reached over a connection that
        it opened itself.
        """
        ...

    async def disconnect(self, peer_key: bytes) -> None:
        """End the connection to a peer, its streams too; the next `open` dials again. Never raises."""
        ...

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        """Whether somebody accepts a new connection at `address`. Who it is, is not asked."""
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


@asynccontextmanager
async def closing(opening: Awaitable[Stream]) -> AsyncIterator[Stream]:
    """The stream that is being opened, closed at the end of the block however that ends."""
    stream = await opening
    try:
        yield stream
    finally:
        await stream.close()
