"""The transport over a peer-to-peer daemon that somebody else wrote: what is ours in it, without the daemon's library.

The first frame of a stream names its method. Addresses come from the chain (`learn`), and from the hint board where
the chain's is missing or does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol

from distributed_training.errors import DeadlineMissed, LocalFault, NetworkFault
from distributed_training.network.base import StreamHandler, Traffic
from distributed_training.network.budgets import Budget
from distributed_training.network.connection import Connection
from distributed_training.network.descriptors import raise_file_limit, streams_of_peers
from distributed_training.network.frames import HEADER_BYTES, FrameStream
from distributed_training.network.hints import DhtNode, HintBoard
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.ports import free_port
from distributed_training.network.serving import Serving
from distributed_training.ongoing import Ongoing

MAX_METHOD_BYTES = 64
METHOD_TIMEOUT_S = 10.0  # an incoming stream must say what it wants
HINT_START_S = 1.0
HANDLERS_STOP_S = 2.0  # of the 5 s that a stop may take
RESTART_DELAY_S = 1.0
DIAL_S = 5.0  # two lost first packets; who does not answer by then must not hold up who does
DISCONNECT_S = 2.0
MAX_ADDRESSES = 64  # of one peer key in a dial: whoever is registered can say that it listens wherever they like

Address = tuple[str, int]

StreamCallback = Callable[[bytes, str | None, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

log = logging.getLogger(__name__)


class Daemon(Protocol):
    """A program that holds the connections. Every call raises NetworkFault when it fails; all are cancel-safe."""

    async def start(self, port: int | None, on_stream: StreamCallback) -> None:
        """Listen, unless `port` is None; call `on_stream` with the proven peer key and the IPv4 source of every
        incoming stream.

        Raises LocalFault.
        """
        ...

    async def ended(self) -> str:
        """Wait until the daemon is gone; says how it ended."""
        ...

    async def stop(self) -> None:
        """End it within 3 s, by force if needed. Idempotent."""
        ...

    async def is_connected(self, peer_key: bytes) -> bool: ...

    async def connect(self, peer_key: bytes, address: tuple[str, int]) -> None: ...

    async def disconnect(self, peer_key: bytes) -> None: ...

    async def open_stream(self, peer_key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...

    async def join_dht(self) -> DhtNode: ...


class DaemonTransport:
    """`network.base.Transport` over a Daemon that listens on `host:port` (0: a free port) and announces `announce`.

    `port` None: it listens nowhere. It dials; others reach it over the connections that it has opened.
    """

    def __init__(
        self,
        identity: PeerIdentity,
        daemon: Daemon,
        host: str,
        port: int | None,
        announce: tuple[str, int] | None,
        hints: bool,
    ) -> None:
        self._identity = identity
        self._daemon = daemon
        self._host = host
        self._port = port
        self._announce = announce
        self._use_hints = hints
        self._hints: HintBoard | None = None
        self._traffic = Traffic()
        self._serving = Serving(streams_of_peers(raise_file_limit()))
        self._addresses: dict[bytes, tuple[Address, ...]] = {}
        self._next: dict[bytes, int] = {}  # which of them comes first in the next dial, after one that failed
        self._found_at: dict[bytes, Address] = {}  # where a connection proved the peer key
        self._watcher: asyncio.Task[None] | None = None

    @property
    def peer_key(self) -> bytes:
        return self._identity.public_key

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def refusals(self) -> int:
        return self._serving.refusals

    @property
    def address(self) -> tuple[str, int] | None:
        """Where others reach us: the announced address, else the one we listen on. None: nowhere that we know."""
        if self._port is None or self._announce is not None:
            return self._announce
        return None if self._host == "0.0.0.0" else (self._host, self._port)

    def serve(self, method: str, handler: StreamHandler) -> None:
        if len(method.encode()) > MAX_METHOD_BYTES:
            raise ValueError(f"a method name has at most {MAX_METHOD_BYTES} bytes: {method!r}")
        self._serving.serve(method, handler)

    def admit(self, peers: Collection[bytes], budget: Budget) -> None:
        self._serving.admit(peers, budget)

    def learn(self, peer_key: bytes, *addresses: Address) -> None:
        self._addresses[peer_key] = addresses

    async def disconnect(self, peer_key: bytes) -> None:
        with suppress(NetworkFault, TimeoutError):
            async with asyncio.timeout(DISCONNECT_S):
                await self._daemon.disconnect(peer_key)

    async def answers(self, address: tuple[str, int], timeout_s: float) -> bool:
        try:
            await knock(address, timeout_s)
        except NetworkFault:
            return False
        return True

    async def start(self) -> None:
        """Raises ConfigError if the port is taken, LocalFault if the daemon does not come up."""
        if self._watcher is not None:
            return
        if self._port is not None:
            self._port = await free_port(self._host, self._port)
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="daemon watcher")

    async def stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher], timeout=0.5)
        await self._serving.stop(HANDLERS_STOP_S)
        await self._leave_board()
        await self._daemon.stop()

    async def open(self, peer_key: bytes, method: str, timeout_s: float) -> FrameStream:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._connect(peer_key)
        except TimeoutError as error:
            raise DeadlineMissed(f"no connection to {peer_key.hex()[:12]} within {timeout_s:.3g} s") from error
        name, joined = method.encode(), Connection(reader, writer)
        joined.write(len(name).to_bytes(HEADER_BYTES, "big") + name)  # fits the empty buffer: no need to wait
        return self._serving.track(FrameStream(peer_key, joined, joined, joined.abort, self._traffic))

    async def _connect(self, peer_key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not await self._daemon.is_connected(peer_key):
            await self._dial(peer_key)
        stream = await self._daemon.open_stream(peer_key)
        self._meet(peer_key)
        return stream

    async def _dial(self, peer_key: bytes) -> None:
        """The connection proves who listens: all addresses that are said to be the peer's are tried, best first, then
        its hint. Of very many the next dial tries others."""
        said, first = self._addresses.get(peer_key, ()), self._next.pop(peer_key, 0)
        said = said[first : first + MAX_ADDRESSES]
        known = list(dict.fromkeys([self._found_at[peer_key], *said] if peer_key in self._found_at else said))
        failure = NetworkFault(f"{peer_key.hex()[:12]} has no open port that we know of, and is not connected to us")
        if known:
            try:
                return await self._connect_at_one(peer_key, known)
            except NetworkFault as fault:
                failure = fault
                last = first + MAX_ADDRESSES
                self._next[peer_key] = last if last < len(self._addresses.get(peer_key, ())) else 0
        hint = await self._hints.find(peer_key) if self._hints is not None else None
        if hint is None or hint in known:
            raise failure
        return await self._connect_at_one(peer_key, [hint])

    async def _connect_at_one(self, peer_key: bytes, addresses: Sequence[Address]) -> None:
        """All at once: one that is false, or silent, holds up none of the others."""
        tries = [asyncio.create_task(self._connect_at(peer_key, a), name="dial") for a in addresses]
        failure = NetworkFault("nowhere to dial")
        try:
            for tried in asyncio.as_completed(tries):
                try:
                    return await tried
                except NetworkFault as fault:
                    failure = fault
            raise failure
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _connect_at(self, peer_key: bytes, address: Address) -> None:
        # After a failed dial libp2p fails for 5 s and more without trying (measured): see first if anybody listens.
        await knock(address, DIAL_S)
        try:
            async with asyncio.timeout(DIAL_S):
                await self._daemon.connect(peer_key, address)
        except TimeoutError as error:
            raise DeadlineMissed(f"no handshake with {address[0]}:{address[1]} within {DIAL_S:g} s") from error
        self._found_at[peer_key] = address

    async def _accept(
        self, peer_key: bytes, source: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        joined = Connection(reader, writer)

        async def method() -> str:
            # Method names are not payload: they go past the traffic counters.
            opening = FrameStream(peer_key, joined, joined, joined.abort, Traffic())
            name = (await opening.read(MAX_METHOD_BYTES, METHOD_TIMEOUT_S)).decode("utf-8", "replace")
            self._meet(peer_key)
            return name

        stream = FrameStream(peer_key, joined, joined, joined.abort, self._traffic)
        stream.source = source
        await self._serving.answer(stream, method)

    async def _launch(self) -> None:
        await self._daemon.start(self._port, self._accept)
        if not self._use_hints:
            return
        try:
            async with asyncio.timeout(HINT_START_S):
                node = await self._daemon.join_dht()
        except Exception as error:  # the board is a convenience: whatever ails it, the node works without
            log.warning("no hint board: %r", error)
            return
        self._hints = HintBoard(node, self._identity, self.address)
        self._hints.start()

    async def _watch(self) -> None:
        # The daemon is a separate program: if it dies under us, start another instead of going silent.
        down = Ongoing(log, "the network daemon ended, starting another", "another network daemon runs", logging.ERROR)
        while True:
            ending = await self._daemon.ended()
            down.begin(ending)
            running = False
            while not running:
                await self._leave_board()
                await self._daemon.stop()
                await asyncio.sleep(RESTART_DELAY_S)
                try:
                    await self._launch()
                    running = True
                except LocalFault as fault:
                    down.begin(fault)
            down.end()

    async def _leave_board(self) -> None:
        board, self._hints = self._hints, None
        if board is not None:
            await board.stop()

    def _meet(self, peer_key: bytes) -> None:
        if self._hints is not None:
            self._hints.meet(peer_key)


async def knock(address: tuple[str, int], timeout_s: float) -> None:
    """Open a TCP connection and drop it. Raises NetworkFault that says why nobody answered."""
    shown = f"{address[0]}:{address[1]}"
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(*address)
    except TimeoutError as error:
        raise DeadlineMissed(f"nobody answers at {shown} within {timeout_s:g} s") from error
    except OSError as error:
        raise NetworkFault(f"nobody listens at {shown} ({error.strerror or error})") from error
    writer.transport.abort()
