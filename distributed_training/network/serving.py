"""What both adapters do with incoming streams: find the handler, keep to budgets, contain errors, count, cancel."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Collection

from distributed_training.errors import NetworkFault, PeerFault, on_one_line
from distributed_training.network.base import StreamHandler
from distributed_training.network.budgets import Account, Accounts, Budget
from distributed_training.network.frames import EndOfStream, FrameStream

# Incoming, at one time. Peer keys cost nothing, so the streams of strangers are bounded all together too: a subnet has
# 256 uids, and an honest peer says who it is in the same breath in which it opens the stream.
MAX_STREAMS_PER_PEER = 64
MAX_SILENT_STREAMS = 256
MAX_STREAMS = 3968  # of all peers together; fewer where this process may have fewer files open (`descriptors.py`)
SHOWN_CHARS = 64  # of a method name that a peer made up
MAX_REASON_CHARS = 300  # of what is logged about a refusal

log = logging.getLogger(__name__)


class Serving:
    """Handlers by method, the tasks that run them, and every open stream of one transport."""

    def __init__(self, max_streams: int = MAX_STREAMS) -> None:
        self.refusals = 0
        self._max_streams = max_streams
        self._handlers: dict[str, StreamHandler] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # By number, so that `stop` ends them in the order in which they were opened, in every process alike.
        self._streams: weakref.WeakValueDictionary[int, FrameStream] = weakref.WeakValueDictionary()
        self._opened = 0
        self._incoming: dict[bytes, dict[FrameStream, None]] = {}  # by peer, oldest first
        self._silent: list[FrameStream] = []  # incoming, oldest first, may hold some that have spoken since
        self._accounts = Accounts()
        self._stopped = False

    def admit(self, peers: Collection[bytes], budget: Budget) -> None:
        """See `network.base.Transport`."""
        self._accounts.admit(peers, budget)

    def serve(self, method: str, handler: StreamHandler) -> None:
        if method in self._handlers:
            raise ValueError(f"method {method!r} is already served")
        self._handlers[method] = handler

    def track(self, stream: FrameStream) -> FrameStream:
        """Remember `stream`, so that `stop` ends it."""
        self._opened += 1
        self._streams[self._opened] = stream
        return stream

    def refuse(self, peer_key: bytes, reason: str) -> None:
        """Count it; log it in one line, unless this peer has filled enough lines already."""
        self.refusals += 1
        if (skipped := self._may_log(peer_key)) is not None:
            shown = printable(reason) + (f" (and {skipped} more, not logged)" if skipped else "")
            log.debug("refused a stream from %s: %s", peer_key.hex()[:12], shown)

    def _may_log(self, peer_key: bytes) -> int | None:
        """How many lines were left out before this one; None: leave it out as well."""
        account = self._accounts.of(peer_key)
        if account is None:
            return 0
        if not account.lines.take(1):
            account.unlogged += 1
            return None
        skipped, account.unlogged = account.unlogged, 0
        return skipped

    async def answer(self, stream: FrameStream, method: Callable[[], Awaitable[str]]) -> None:
        """Ask for the method and run its handler on `stream` in the current task; returns when the stream is closed.

        The stream counts from here on, whether it ever names a method or not.
        """
        task = asyncio.current_task()
        assert task is not None
        peer = stream.peer_key
        self.track(stream)
        self._tasks.add(task)
        self._incoming.setdefault(peer, {})[stream] = None
        try:
            await self._handle(stream, method)
        finally:
            self._tasks.discard(task)
            self._forget(stream)
            stream.spoken = True  # nobody waits for it any more
            await stream.close()

    async def _handle(self, stream: FrameStream, method: Callable[[], Awaitable[str]]) -> None:
        peer, shown = stream.peer_key, "unnamed"
        if self._stopped:
            return
        try:
            if len(self._incoming[peer]) > MAX_STREAMS_PER_PEER:
                raise PeerFault(f"more than {MAX_STREAMS_PER_PEER} streams at one time")
            self._limit(stream)
            self._make_room(stream)
            if sum(map(len, self._incoming.values())) > self._max_streams:
                self._one_gives_way(stream)
            name = await method()
            shown = ascii(name)[:SHOWN_CHARS]
            handler = self._handlers.get(name)
            if handler is None:
                self.refuse(peer, f"nobody serves {shown}")
            else:
                await handler(stream)
        except EndOfStream:
            log.debug("%s: %s closed the stream", shown, peer.hex()[:12])
        except (PeerFault, NetworkFault) as fault:
            self.refuse(peer, f"{shown}: {fault}")
        except Exception:
            self.refusals += 1
            if self._may_log(peer) is not None:
                log.exception("the handler of %s failed for %s", shown, peer.hex()[:12])

    def _limit(self, stream: FrameStream) -> None:
        """Take the stream out of its peer's budget, and from now on its bytes. Raises PeerFault when it is used up."""
        peer = stream.peer_key
        account = self._accounts.of(peer)
        if account is not None and not account.streams.take(1):
            stream.abort()
            raise PeerFault("opens more streams than its budget allows")
        stream.meter = lambda size: _charge(self._accounts.of(peer), size)

    def _make_room(self, newcomer: FrameStream) -> None:
        """The oldest stream that has said nothing yet gives way: refusing newcomers would let strangers lock us."""
        self._silent = [stream for stream in self._silent if not stream.spoken]
        if len(self._silent) >= MAX_SILENT_STREAMS:
            oldest = self._silent.pop(0)
            oldest.abort()
            self.refuse(oldest.peer_key, f"said nothing while {MAX_SILENT_STREAMS} other streams were opened")
        self._silent.append(newcomer)

    def _one_gives_way(self, newcomer: FrameStream) -> None:
        """All peers together have too many: strangers go first, then who has most. Raises PeerFault: the newcomer."""
        strangers = [key for key in self._incoming if not self._accounts.names(key)]
        if strangers:
            given = next(iter(self._incoming[strangers[0]]))
        else:
            most = max(self._incoming, key=lambda key: len(self._incoming[key]))
            given = next(reversed(self._incoming[most]))  # its newest: the others may be nearly done
            if len(self._incoming[most]) <= len(self._incoming[newcomer.peer_key]):
                given = newcomer
        why = f"all {self._max_streams} streams are taken"
        given.abort()
        if given is newcomer:
            raise PeerFault(why)
        self._forget(given)
        self.refuse(given.peer_key, why)

    def _forget(self, stream: FrameStream) -> None:
        """It no longer counts. Idempotent."""
        own = self._incoming.get(stream.peer_key, {})
        own.pop(stream, None)
        if not own:
            self._incoming.pop(stream.peer_key, None)

    async def stop(self, budget_s: float) -> None:
        """Cancel the handlers, wait for them at most `budget_s`, end every stream. Idempotent."""
        self._stopped = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=budget_s)
        for stream in list(self._streams.values()):
            stream.abort()


def printable(text: str) -> str:
    """Bounded, in one line, without anything that a terminal or a reader of logs takes for more than text."""
    cut = text if len(text) <= MAX_REASON_CHARS else text[:MAX_REASON_CHARS] + "..."
    return on_one_line(cut)


def _charge(account: Account | None, size: int) -> None:
    """Before a frame is read or written."""
    if account is not None and not account.bytes.take(size):
        raise PeerFault(f"a frame of {size} bytes is more than its budget allows now")
