"""Many nodes in one process: the transport of tests and simulations. Same frames, bounds and deadlines as libp2p."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections.abc import Collection
from typing import Any, Protocol, cast

from distributed_training.errors import NetworkFault
from distributed_training.network.base import StreamHandler, Traffic
from distributed_training.network.budgets import Budget
from distributed_training.network.frames import FrameStream
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.serving import Serving

BUFFER_BYTES = 64 * 1024  # a reader that holds twice this many unread bytes stops its writer
STOP_S = 5.0


class Pipe:
    """One direction of a stream: bytes wait in `reader`, whose flow control stops the writer of the other side.

    A model of the link (`links.LinkPipe`) has its own `write`, `drain` and ends: every byte passes there.
    """

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=BUFFER_BYTES)
        # It calls pause_reading and resume_reading, nothing else. Held weakly, so that a pipe goes with its stream.
        self.reader.set_transport(cast(Any, weakref.proxy(self)))
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False

    def pause_reading(self) -> None:
        self._room.clear()

    def resume_reading(self) -> None:
        self._room.set()

    def write(self, data: bytes | memoryview) -> None:
        if self.closed:
            raise ConnectionResetError("closed by the peer")
        self.reader.feed_data(data)

    async def drain(self) -> None:
        await self._room.wait()
        if self.closed:
            raise ConnectionResetError("closed by the peer")

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.reader.feed_eof()
            self._room.set()

    def hang_up(self) -> None:
        """The reader's side ends it."""
        self.close()


class _End:
    """The writer of one side. Closing it ends both directions, as closing a libp2p stream does."""

    def __init__(self, outgoing: Pipe, incoming: Pipe) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self.write = outgoing.write
        self.drain = outgoing.drain

    def close(self) -> None:
        self._outgoing.close()
        self._incoming.hang_up()


class Wire(Protocol):
    """What lies between two transports of a switch."""

    async def dial(self, source: bytes, target: bytes, timeout_s: float) -> None:
        """What opening a stream takes. Raises NetworkFault or DeadlineMissed."""
        ...

    def pipe(self, source: bytes, target: bytes) -> Pipe: ...


class _NoDistance:
    """Nothing lies between them: bytes are there when they are written."""

    async def dial(self, source: bytes, target: bytes, timeout_s: float) -> None:
        await asyncio.sleep(0)  # as on a real network, opening gives the other tasks a turn

    def pipe(self, source: bytes, target: bytes) -> Pipe:
        return Pipe()


class MemorySwitch:
    """The network that joins the transports of one process and one event loop: started transports by peer key."""

    def __init__(self, wire: Wire | None = None) -> None:
        self.wire: Wire = wire or _NoDistance()
        self._transports: dict[bytes, MemoryTransport] = {}

    def plug(self, transport: MemoryTransport) -> None:
        self._transports[transport.peer_key] = transport

    def unplug(self, transport: MemoryTransport) -> None:
        if self._transports.get(transport.peer_key) is transport:
            del self._transports[transport.peer_key]

    def find(self, peer_key: bytes) -> MemoryTransport:
        """Raises NetworkFault if no such transport is started."""
        transport = self._transports.get(peer_key)
        if transport is None:
            raise NetworkFault(f"no peer {peer_key.hex()[:12]} on this switch")
        return transport


class MemoryTransport:
    """`network.base.Transport` on a MemorySwitch. The switch vouches for the peer keys.

    `listens` False: behind NAT, reached only by peers that it has opened a stream to. `source`: the address that its
    streams come from, as others see it.
    """

    def __init__(
        self, switch: MemorySwitch, identity: PeerIdentity | bytes, *, listens: bool = True, source: str = "127.0.0.2"
    ) -> None:
        self._switch = switch
        self.source = source
        self._listens = listens
        self._dialled: set[bytes] = set()
        self._peer_key = identity if isinstance(identity, bytes) else identity.public_key
        self._traffic = Traffic()
        self._serving = Serving()
        self._context = contextvars.copy_context()
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def peer_key(self) -> bytes:
        return self._peer_key

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def refusals(self) -> int:
        return self._serving.refusals

    def serve(self, method: str, handler: StreamHandler) -> None:
        self._serving.serve(method, handler)

    def admit(self, peers: Collection[bytes], budget: Budget) -> None:
        self._serving.admit(peers, budget)

    async def start(self) -> None:
        self._switch.plug(self)

    async def stop(self) -> None:
        self._switch.unplug(self)
        await self._serving.stop(STOP_S)

    def learn(self, peer_key: bytes, *addresses: tuple[str, int]) -> None:
        """Nothing to remember: the switch knows every peer."""

    async def disconnect(self, peer_key: bytes) -> None:
        self._dialled.discard(peer_key)

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        """Addresses mean nothing here."""
        return True

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> FrameStream:
        wire = self._switch.wire
        await wire.dial(self._peer_key, peer_key, timeout_s)
        peer = self._switch.find(peer_key)
        if not peer._listens and self._peer_key not in peer._dialled:
            raise NetworkFault(f"{peer_key.hex()[:12]} has no open port and is not connected to us")
        self._dialled.add(peer_key)
        there, back = wire.pipe(self._peer_key, peer_key), wire.pipe(peer_key, self._peer_key)
        peer._accept(self._peer_key, method, reader=there.reader, end=_End(back, there), source=self.source)
        end = _End(there, back)
        return self._serving.track(FrameStream(peer_key, back.reader, end, end.close, self._traffic))

    def _accept(self, peer_key: bytes, method: str, *, reader: asyncio.StreamReader, end: _End, source: str) -> None:
        async def named() -> str:
            return method

        stream = FrameStream(peer_key, reader, end, end.close, self._traffic)
        stream.source = source
        # In this node's context, as in a process of its own: log lines then bear its name, not the asker's.
        task = asyncio.create_task(
            self._serving.answer(stream, named), name=f"serve {method}", context=self._context.copy()
        )
        self._answering.add(task)  # the loop keeps only weak references
        task.add_done_callback(self._answering.discard)
