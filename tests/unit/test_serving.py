"""Incoming streams of strangers, silent or rude, at a transport whose daemon is a plain socket server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from distributed_training.errors import ConfigError
from distributed_training.network.base import Stream
from distributed_training.network.budgets import Budget
from distributed_training.network.daemon_transport import DaemonTransport, StreamCallback
from distributed_training.network.descriptors import streams_of_peers
from distributed_training.network.hints import DhtNode
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.serving import MAX_SILENT_STREAMS, MAX_STREAMS_PER_PEER, SHOWN_CHARS, Serving

AMPLE = Budget(streams=1000, streams_per_s=1000, bytes=1 << 30, bytes_per_s=1 << 30)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SocketDaemon:
    """`daemon_transport.Daemon` that believes the 32 bytes of peer key with which a connection begins."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, port: int | None, on_stream: StreamCallback) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.append(writer)
            await on_stream(await reader.readexactly(32), None, reader, writer)

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=1024)

    @property
    def held(self) -> int:
        """Connections, each a file descriptor, that are open on the side of the node."""
        return sum(not writer.transport.is_closing() for writer in self._writers)

    async def dial(self, peer: int) -> Connection:
        reader, writer = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        writer.write(peer.to_bytes(32, "big"))
        return reader, writer

    async def ended(self) -> str:
        await asyncio.sleep(3600)
        return "never"

    async def stop(self) -> None:
        self._server.close()

    async def is_connected(self, peer_key: bytes) -> bool:
        return False

    async def connect(self, peer_key: bytes, address: tuple[str, int]) -> None: ...

    async def disconnect(self, peer_key: bytes) -> None: ...

    async def open_stream(self, peer_key: bytes) -> Connection:
        raise NotImplementedError

    async def join_dht(self) -> DhtNode:
        raise NotImplementedError


@asynccontextmanager
async def serving(max_streams: int | None = None) -> AsyncIterator[tuple[DaemonTransport, SocketDaemon]]:
    daemon = SocketDaemon()
    transport = DaemonTransport(PeerIdentity(bytes(32)), daemon, "127.0.0.1", 0, None, hints=False)
    if max_streams is not None:
        transport._serving = Serving(max_streams)

    async def echo(stream: Stream) -> None:
        while True:
            await stream.write(await stream.read(100, 10), 10)

    transport.serve("echo", echo)
    await transport.start()
    try:
        yield transport, daemon
    finally:
        await transport.stop()


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def echoed(connection: Connection, text: bytes) -> bool:
    connection[1].write(frame(text))
    return await asyncio.wait_for(connection[0].readexactly(4 + len(text)), 5) == frame(text)


async def test_streams_count_before_they_name_their_method() -> None:
    async with serving() as (transport, daemon):
        dialled = [await daemon.dial(1) for _ in range(MAX_STREAMS_PER_PEER + 6)]
        await eventually(lambda: transport.refusals == 6)
        assert daemon.held == MAX_STREAMS_PER_PEER
        for _, writer in dialled:
            writer.close()
        await eventually(lambda: daemon.held == 0)
        friend = await daemon.dial(1)
        friend[1].write(frame(b"echo"))
        assert await echoed(friend, b"closed streams no longer count")
        friend[1].close()


@pytest.mark.parametrize("opening", [b"", frame(b"echo")], ids=["no method", "method, then nothing"])
async def test_silent_strangers_together_hold_a_bounded_number_of_streams(opening: bytes) -> None:
    async with serving() as (transport, daemon):
        friend = await daemon.dial(10_000)
        friend[1].write(frame(b"echo"))
        assert await echoed(friend, b"known before the flood")
        strangers: list[Connection] = []
        for number in range(MAX_SILENT_STREAMS + 40):
            strangers.append(await daemon.dial(number // 10))
            strangers[-1][1].write(opening)
        await eventually(lambda: transport.refusals == 40)
        await eventually(lambda: daemon.held == MAX_SILENT_STREAMS + 1)
        assert await asyncio.wait_for(strangers[0][0].read(), 5) == b"", "the oldest gave way"
        newcomer = await daemon.dial(10_001)
        newcomer[1].write(frame(b"echo"))
        assert await echoed(newcomer, b"served in the flood") and await echoed(friend, b"as are older ones")
        for _, writer in (*strangers, friend, newcomer):
            writer.close()


async def known(daemon: SocketDaemon, peer: int, text: bytes) -> Connection:
    """A stream that has spoken."""
    connection = await daemon.dial(peer)
    connection[1].write(frame(b"echo"))
    assert await echoed(connection, text)
    return connection


async def test_all_peers_together_hold_a_bounded_number_of_streams_and_nobody_all_of_them() -> None:
    """16 registered peers with 64 streams each, as many strangers, and a limit that 1,024 open files give."""
    limit, roster = streams_of_peers(1024), range(1, 18)
    async with serving(limit) as (transport, daemon):
        transport.admit([n.to_bytes(32, "big") for n in roster], AMPLE)
        honest = await known(daemon, 17, b"before")
        dialled = [await known(daemon, 100 + n, b"stranger") for n in range(20)]
        for n in range(16):
            for _ in range(MAX_STREAMS_PER_PEER):
                dialled.append(await daemon.dial(1 + n))
                dialled[-1][1].write(frame(b"echo") + frame(b"held open"))
        await eventually(lambda: daemon.held <= limit and transport.refusals >= 16 * MAX_STREAMS_PER_PEER - limit)
        assert await echoed(honest, b"what was open stays open")
        more = [await known(daemon, 17, b"and more can be opened") for _ in range(limit // 17 - 1)]
        assert daemon.held <= limit
        assert not any([await alive(connection) for connection in dialled[:20]]), "strangers went first"
        for _, writer in (*dialled, *more, honest):
            writer.close()


async def alive(connection: Connection) -> bool:
    try:
        return await echoed(connection, b"there?")
    except (asyncio.IncompleteReadError, OSError):
        return False


def test_too_few_open_files_are_refused_with_what_to_do() -> None:
    assert streams_of_peers(8192) == 3968 and streams_of_peers(1024) == 384
    with pytest.raises(ConfigError, match="LimitNOFILE=8192"):
        streams_of_peers(64)


async def test_a_method_name_is_logged_short_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as (transport, daemon):
        rude = await daemon.dial(1)
        rude[1].write(frame(b"x\nforged line \x1b[31m" + b"\0" * 40))
        await eventually(lambda: transport.refusals == 1)
        rude[1].close()
    (line,) = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert "\n" not in line and "\x1b" not in line and "\0" not in line
    assert "'x\\nforged line" in line and len(line) < SHOWN_CHARS + 80
