"""A peer key that others name too, with false addresses or none: its owner is reached at once, also after a start.

The daemon is a table of who listens where; addresses that swallow a dial are real sockets that never answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from samples import commitment, neuron, roster

from distributed_training.errors import NetworkFault
from distributed_training.network.daemon_transport import MAX_ADDRESSES, DaemonTransport, StreamCallback
from distributed_training.network.hints import DhtNode
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Neuron

Address = tuple[str, int]
VICTIM = PeerIdentity(bytes([7]) * 32)


class TableDaemon:
    """`daemon_transport.Daemon` whose handshakes succeed where the peer really listens, and hang elsewhere."""

    def __init__(self, listens: dict[Address, bytes]) -> None:
        self._listens, self._met = listens, set[bytes]()

    async def start(self, port: int | None, on_stream: StreamCallback) -> None: ...

    async def ended(self) -> str:
        await asyncio.sleep(3600)
        return "never"

    async def stop(self) -> None: ...

    async def is_connected(self, peer_key: bytes) -> bool:
        return peer_key in self._met

    async def connect(self, peer_key: bytes, address: Address) -> None:
        if self._listens.get(address) != peer_key:
            await asyncio.sleep(3600)
        self._met.add(peer_key)

    async def disconnect(self, peer_key: bytes) -> None: ...

    async def open_stream(self, peer_key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if peer_key not in self._met:
            raise NetworkFault("not connected")
        (address,) = (a for a, key in self._listens.items() if key == peer_key)
        return await asyncio.open_connection(*address)

    async def join_dht(self) -> DhtNode:
        raise NotImplementedError


@asynccontextmanager
async def sockets(count: int) -> AsyncIterator[list[Address]]:
    """Addresses where a connection is accepted and nothing is said."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(swallow, "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [server.sockets[0].getsockname() for server in servers]
    finally:
        for server in servers:
            server.close()


def thieves(addresses: list[Address], *, reduces: bool) -> list[Neuron]:
    """With more stake than the victim, and registered before it."""
    claim = commitment(2, reduces=reduces, peer_key=VICTIM.public_key)
    return [neuron(10 + n, commitment=claim, address=a, stake=9.0) for n, a in enumerate(addresses)]


@pytest.mark.parametrize("reduces", [True, False], ids=["false addresses", "nowhere"])
async def test_who_names_a_foreign_peer_key_hides_nobody(reduces: bool) -> None:
    async with sockets(9) as (true, *false):
        victim = neuron(1, commitment=commitment(1, peer_key=VICTIM.public_key), address=true, registered_block=9)
        started = DaemonTransport(
            PeerIdentity(bytes(32)), TableDaemon({true: VICTIM.public_key}), "127.0.0.1", None, None, hints=False
        )
        book = PeerBook(started, 1, bytes(32), started._identity.sign, verify_peer)
        book.update(roster(victim, *thieves(false, reduces=reduces)))
        began = asyncio.get_running_loop().time()
        stream = await started.open(VICTIM.public_key, "hello", 2.0)
        assert asyncio.get_running_loop().time() - began < 1.0
        await stream.close()
        await started.stop()


async def test_a_crowd_that_names_a_foreign_peer_key_hides_nobody_for_longer_than_a_dial() -> None:
    async with sockets(1) as (true,):
        victim = neuron(1, commitment=commitment(1, peer_key=VICTIM.public_key), address=true, registered_block=9)
        started = DaemonTransport(
            PeerIdentity(bytes(32)), TableDaemon({true: VICTIM.public_key}), "127.0.0.1", None, None, hints=False
        )
        book = PeerBook(started, 1, bytes(32), started._identity.sign, verify_peer)
        nobody = [("127.0.0.1", port) for port in range(1, MAX_ADDRESSES + 1)]
        book.update(roster(victim, *thieves(nobody, reduces=True)))
        with pytest.raises(NetworkFault):
            await started.open(VICTIM.public_key, "hello", 5.0)
        book.update(roster(victim, *thieves(nobody, reduces=True)))
        stream = await started.open(VICTIM.public_key, "hello", 5.0)
        await stream.close()
        await started.stop()


class Board:
    """A hint board that knows one address."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def find(self, peer_key: bytes) -> Address | None:
        return self._address

    def meet(self, peer_key: bytes) -> None: ...

    async def stop(self) -> None: ...


async def test_the_hint_is_asked_whatever_the_chain_says() -> None:
    async with sockets(2) as (true, false):
        transport = DaemonTransport(
            PeerIdentity(bytes(32)), TableDaemon({true: VICTIM.public_key}), "127.0.0.1", None, None, hints=False
        )
        transport._hints = Board(true)  # type: ignore[assignment]
        book = PeerBook(transport, 1, bytes(32), transport._identity.sign, verify_peer)
        book.update(roster(*thieves([false], reduces=False)))
        stream = await transport.open(VICTIM.public_key, "hello", 2.0)
        await stream.close()
        await transport.stop()
