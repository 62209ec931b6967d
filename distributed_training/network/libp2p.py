"""The transport of real nodes: libp2p streams through hivemind's p2p daemon. The only module that imports hivemind.

One daemon process (p2pd) per node, driven from the node's own event loop. libp2p authenticates and encrypts the
streams; they reach us as unix-socket connections, one per stream. The daemon follows our process into death, however
that dies: it exits when its client connection closes.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError, LocalFault, NetworkFault, WireError, said
from distributed_training.locks import LOCK_FILE, Lock, holder
from distributed_training.network.daemon_transport import DaemonTransport, StreamCallback
from distributed_training.network.hints import HINT_TIMEOUT_S, SignedHints
from distributed_training.network.identity import PeerIdentity

# p2pd's own log level follows this one, and its chatter would cross a pipe line by line.
os.environ.setdefault("HIVEMIND_LOGLEVEL", "WARNING")
# p2pd is written in Go. On one thread it copies and encrypts for less, and as fast: 400 MB/s in one stream (measured).
os.environ.setdefault("GOMAXPROCS", "1")

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.logging import use_hivemind_log_handler
from hivemind.utils.multiaddr import Multiaddr

# Importing hivemind installs a log handler of its own and renames WARNING for the whole process: undo both.
use_hivemind_log_handler("nowhere")
logging.getLogger("hivemind").setLevel(logging.WARNING)
logging.addLevelName(logging.WARNING, "WARNING")

PROTOCOL = "/distributed-training/1"
START_TIMEOUT_S = 30.0
STOP_S = 1.5
FOLDER_PREFIX = "dt-"
HINT_RECORDS = 4096  # kept for others
DAEMON_ERRORS = (P2PDaemonError, OSError, asyncio.IncompleteReadError, ValueError)

# A libp2p peer id of an Ed25519 key is the identity multihash of the public-key protobuf, so it contains the key:
# https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])

# The classes of hivemind and of its generated protobuf code carry no usable types.
_pb: Any = p2pd_pb2


def peer_id_of(peer_key: bytes) -> bytes:
    """The libp2p id of a 32-byte Ed25519 public key. Raises ValueError for any other length."""
    if len(peer_key) != 32:
        raise ValueError(f"a peer key has 32 bytes, not {len(peer_key)}")
    return _ID_PREFIX + peer_key


def key_of(peer_id: bytes) -> bytes:
    """The Ed25519 public key in a libp2p id. Raises WireError for ids of other key types."""
    if len(peer_id) != len(_ID_PREFIX) + 32 or not peer_id.startswith(_ID_PREFIX):
        raise WireError(f"peer id {peer_id.hex()} holds no Ed25519 key")
    return peer_id[len(_ID_PREFIX) :]


class Libp2pTransport(DaemonTransport):
    """`network.base.Transport` over libp2p. Listens on TCP `host:port`; `announce` is the address told to others.

    `port` 0 takes a free one (see `address`), None listens nowhere. Creates the identity file if it is missing; raises
    ConfigError if it is bad. `hints` False leaves the DHT out. `start` raises ConfigError if the port is taken.
    """

    def __init__(
        self,
        identity_path: Path,
        host: str = "127.0.0.1",
        port: int | None = 0,
        announce: tuple[str, int] | None = None,
        *,
        hints: bool = True,
    ) -> None:
        identity = PeerIdentity.load_or_create(identity_path)
        daemon = P2pDaemon(identity.public_key, identity_path, host, announce)
        super().__init__(identity, daemon, host, port, announce, hints)


class P2pDaemon:
    """`daemon_transport.Daemon` over p2pd."""

    def __init__(self, peer_key: bytes, identity_path: Path, host: str, announce: tuple[str, int] | None) -> None:
        self._peer_key = peer_key
        self._identity_path = identity_path
        self._host = host
        self._announce = announce
        self._p2p: Any = None
        self._folder: Path | None = None
        self._lock: Lock | None = None  # on the folder, so that who comes later can tell whether we still live

    async def start(self, port: int | None, on_stream: StreamCallback) -> None:
        async def accept(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                peer_key = key_of(info.peer_id.to_bytes())
            except WireError:
                return writer.transport.abort()
            return await on_stream(peer_key, info.addr.get("ip4"), reader, writer)

        try:
            self._p2p = await self._spawn(port)
            await self._p2p.add_binary_stream_handler(PROTOCOL, accept)
        except DAEMON_ERRORS as error:
            raise LocalFault(f"the libp2p daemon did not start: {said(error)}") from error
        if self._p2p.peer_id.to_bytes() != peer_id_of(self._peer_key):
            raise LocalFault("the libp2p daemon runs under another peer id than the identity file holds")

    async def _spawn(self, port: int | None) -> Any:
        # The path of a unix socket has at most 107 bytes, so the folder must be short.
        base = tempfile.gettempdir()
        base = base if len(base) < 40 else "/tmp"
        sweep(Path(base))
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=base))
        self._lock = Lock(self._folder, "")
        daemon: Any = type("_Daemon", (P2P,), {"_UNIX_SOCKET_PREFIX": f"/unix{self._folder}/"})
        return await daemon.create(
            identity_path=str(self._identity_path),
            check_if_identity_free=False,  # it reads RSA keys only
            host_maddrs=None if port is None else [_multiaddr((self._host, port))],
            no_listen=port is None,
            announce_maddrs=[_multiaddr(self._announce)] if self._announce else None,
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
            startup_timeout=START_TIMEOUT_S,
        )

    async def ended(self) -> str:
        return f"exit code {await self._p2p._child.wait()}"

    async def stop(self) -> None:
        p2p, self._p2p = self._p2p, None
        if p2p is not None:
            try:
                await asyncio.wait_for(p2p.shutdown(), STOP_S)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    p2p._child.kill()
            for task in (p2p._client.control._read_task, p2p._client.control._write_task):
                if task.done() and not task.cancelled():
                    task.exception()  # a lost connection is news to nobody now
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    async def is_connected(self, peer_key: bytes) -> bool:
        return peer_id_of(peer_key) in await self.connected()

    async def connected(self) -> set[bytes]:
        """The libp2p ids of all peers that we have a connection to."""
        async with self._control(_pb.Request(type=_pb.Request.LIST_PEERS)) as (_, writer, response):
            writer.close()
            return {peer.id for peer in response.peers}

    async def connect(self, peer_key: bytes, address: tuple[str, int]) -> None:
        request = _pb.ConnectRequest(peer=peer_id_of(peer_key), addrs=[_multiaddr(address).to_bytes()])
        async with self._control(_pb.Request(type=_pb.Request.CONNECT, connect=request)) as (_, writer, _):
            writer.close()

    async def disconnect(self, peer_key: bytes) -> None:
        request = _pb.DisconnectRequest(peer=peer_id_of(peer_key))
        async with self._control(_pb.Request(type=_pb.Request.DISCONNECT, disconnect=request)) as (_, writer, _):
            writer.close()

    async def open_stream(self, peer_key: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        request = _pb.StreamOpenRequest(peer=peer_id_of(peer_key), proto=[PROTOCOL])
        async with self._control(_pb.Request(type=_pb.Request.STREAM_OPEN, streamOpen=request)) as (reader, writer, _):
            return reader, writer

    async def join_dht(self) -> HivemindDht:
        return await HivemindDht.create(self._p2p, self.connected)

    @asynccontextmanager
    async def _control(self, request: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Any]]:
        """One control request on its own connection, closed on any failure (hivemind's own calls leave theirs open)."""
        if self._p2p is None:
            raise NetworkFault("this transport is not running")
        writer = None
        try:
            reader, writer = await self._p2p._client.control.daemon_connector.open_connection()
            await write_pbmsg(writer, request)
            response = _pb.Response()
            await read_pbmsg_safe(reader, response)
            raise_if_failed(response)
            yield reader, writer, response
        except BaseException as error:
            if writer is not None:
                writer.transport.abort()
            if isinstance(error, DAEMON_ERRORS):
                raise NetworkFault(said(error)[:300]) from error
            raise


def sweep(base: Path) -> None:
    """Remove the folders of sockets below `base` whose processes were killed, and nothing else of such a name.

    Never raises.
    """
    for folder in base.glob(f"{FOLDER_PREFIX}*"):
        try:
            if folder.lstat().st_uid == os.getuid() and holder(folder) is not None and _only_sockets(folder):
                with Lock(folder, ""):
                    shutil.rmtree(folder, ignore_errors=True)
        except (ConfigError, OSError):
            continue  # it lives, or somebody else was faster


def _only_sockets(folder: Path) -> bool:
    return all(path.is_socket() for path in folder.iterdir() if path.name != LOCK_FILE)


class HivemindDht:
    """`hints.DhtNode` over hivemind's DHT, asked one hop far: at the peers that we are connected to.

    A search through the whole DHT would make libp2p dial peers that are gone, and after a failed dial libp2p refuses to
    try again for 5 s and more (measured): a restarted peer would be out of reach just then.
    """

    def __init__(self, node: Any, connected: Callable[[], Awaitable[set[bytes]]]) -> None:
        self._protocol = node.protocol
        self._shutdown = node.shutdown
        self._connected = connected

    @classmethod
    async def create(cls, p2p: Any, connected: Callable[[], Awaitable[set[bytes]]]) -> HivemindDht:
        validator: Any = SignedHints(lambda key: DHTID.generate(key).to_bytes())
        node = await DHTNode.create(
            p2p, record_validator=validator, cache_size=HINT_RECORDS, wait_timeout=HINT_TIMEOUT_S / 2
        )
        node.protocol.storage.maxsize = HINT_RECORDS
        return cls(node, connected)

    async def get(self, key: bytes) -> bytes | None:
        record_id = DHTID.generate(key)
        answers = await asyncio.gather(*[self._protocol.call_find(p, [record_id]) for p in await self._neighbours()])
        records = [self._protocol.storage.get(record_id), *(answer[record_id][0] for answer in answers if answer)]
        found = [record for record in records if record is not None and isinstance(record.value, bytes)]
        return max(found, key=lambda record: record.expiration_time).value if found else None

    async def store(self, key: bytes, value: bytes, expires: float) -> None:
        record_id = DHTID.generate(key)
        self._protocol.storage.store(record_id, value, expires)
        stores = [self._protocol.call_store(p, [record_id], [value], expires) for p in await self._neighbours()]
        await asyncio.gather(*stores)

    async def greet(self, peer_key: bytes) -> bool:
        return await self._protocol.call_ping(PeerID(peer_id_of(peer_key))) is not None

    async def shutdown(self) -> None:
        await self._shutdown()

    async def _neighbours(self) -> list[Any]:
        table = self._protocol.routing_table
        connected = await self._connected()
        for peer_id, node_id in list(table.peer_id_to_uid.items()):
            if peer_id.to_bytes() not in connected:
                del table[node_id]
        return list(table.peer_id_to_uid)


def _multiaddr(address: tuple[str, int]) -> Multiaddr:
    """Raises ValueError unless the host is an IP literal."""
    version = ipaddress.ip_address(address[0]).version
    return Multiaddr(f"/ip{version}/{address[0]}/tcp/{address[1]}")
