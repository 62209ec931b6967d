"""What both adapters do with incoming streams: find the handler, contain its errors, count, cancel."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import Counter

from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.network.base import StreamHandler
from distributed_training.network.frames import EndOfStream, FrameStream

MAX_STREAMS_PER_PEER = 64  # incoming, at one time: one peer cannot take all our file descriptors

log = logging.getLogger(__name__)


class Serving:
    """Handlers by method, the tasks that run them, and every open stream of one transport."""

    def __init__(self) -> None:
        self.refusals = 0
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: weakref.WeakSet[FrameStream] = weakref.WeakSet()
        self._incoming: Counter[bytes] = Counter()
        self._stopped = False

    def serve(self, method: str, handler: StreamHandler) -> None:
        if method in self._handlers:
            raise ValueError(f"method {method!r} is already served")
        self._handlers[method] = handler

    def track(self, stream: FrameStream) -> FrameStream:
        """Remember `stream`, so that `stop` ends it."""
        self._streams.add(stream)
        return stream

    def refuse(self, peer_key: bytes, reason: str) -> None:
        self.refusals += 1
        log.info("refused a stream from %s: %s", peer_key.hex()[:12], reason)

    async def answer(self, stream: FrameStream, method: str) -> None:
        """Run the handler of `method` on `stream` in the current task; returns when the stream is closed."""
        task = asyncio.current_task()
        assert task is not None
        peer = stream.peer_key
        self.track(stream)
        self._tasks.add(task)
        self._incoming[peer] += 1
        try:
            await self._handle(stream, method)
        finally:
            self._tasks.discard(task)
            self._incoming[peer] -= 1
            if not self._incoming[peer]:
                del self._incoming[peer]
            await stream.close()

    async def _handle(self, stream: FrameStream, method: str) -> None:
        peer = stream.peer_key
        handler = self._handlers.get(method)
        if self._stopped:
            return
        try:
            if handler is None:
                raise WireError(f"nobody serves {method[:64]!r}")
            if self._incoming[peer] > MAX_STREAMS_PER_PEER:
                raise PeerFault(f"more than {MAX_STREAMS_PER_PEER} streams at one time")
            await handler(stream)
        except EndOfStream:
            log.debug("%s: %s closed the stream", method, peer.hex()[:12])
        except (PeerFault, NetworkFault) as fault:
            self.refuse(peer, f"{method[:64]}: {fault}")
        except Exception:
            self.refusals += 1
            log.exception("the handler of %s failed for %s", method, peer.hex()[:12])

    async def stop(self, budget_s: float) -> None:
        """Cancel the handlers, wait for them at most `budget_s`, end every stream. Idempotent."""
        self._stopped = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=budget_s)
        for stream in list(self._streams):
            stream.abort()
