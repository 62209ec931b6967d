"""Identity files, frames over broken connections, and signed address hints."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.errors import ConfigError, NetworkFault, WireError
from distributed_training.network.base import Traffic
from distributed_training.network.frames import EndOfStream, FrameStream
from distributed_training.network.hints import (
    HINT_BYTES,
    HINT_LIFETIME_S,
    HintBoard,
    SignedHints,
    decode_hint,
    encode_hint,
)
from distributed_training.network.identity import PeerIdentity, verify_peer

SEED = bytes(range(32))
NOW = 1_700_000_000.0


def test_the_identity_file_is_the_libp2p_key_protobuf(tmp_path: Path) -> None:
    path = tmp_path / "node" / "identity.key"
    identity = PeerIdentity.load_or_create(path, SEED)
    assert path.read_bytes() == bytes([8, 1, 0x12, 64]) + SEED + identity.public_key
    assert path.stat().st_mode & 0o777 == 0o400
    assert [child.name for child in path.parent.iterdir()] == ["identity.key"]
    assert PeerIdentity.load_or_create(path, bytes(32)).public_key == identity.public_key, "the file wins"


@pytest.mark.parametrize("damage", [b"", b"junk" * 17, bytes([8, 1, 0x12, 64]) + SEED + bytes(32)])
def test_a_bad_identity_file_is_a_config_error_that_names_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(damage)
    with pytest.raises(ConfigError, match=r"identity\.key"):
        PeerIdentity.load_or_create(path)
    with pytest.raises(ConfigError, match="identity file"):
        PeerIdentity.load_or_create(tmp_path)


def test_signatures_bind_key_and_message() -> None:
    identity = PeerIdentity(SEED)
    signature = identity.sign(b"message")
    assert len(signature) == 64
    assert verify_peer(identity.public_key, b"message", signature)
    assert not verify_peer(identity.public_key, b"massage", signature)
    assert not verify_peer(PeerIdentity(bytes(32)).public_key, b"message", signature)


@given(st.binary(max_size=70), st.binary(max_size=5), st.binary(max_size=70))
def test_verify_never_raises(key: bytes, message: bytes, signature: bytes) -> None:
    assert not verify_peer(key, message, signature)


@dataclass
class NoWriter:
    def write(self, data: bytes | memoryview) -> None:
        raise ConnectionResetError

    async def drain(self) -> None: ...

    def close(self) -> None: ...


def stream_of(received: bytes) -> FrameStream:
    reader = asyncio.StreamReader()
    reader.feed_data(received)
    reader.feed_eof()
    return FrameStream(bytes(32), reader, NoWriter(), lambda: None, Traffic())


async def test_the_end_between_frames_differs_from_the_end_inside_one() -> None:
    stream = stream_of(bytes([0, 0, 0, 2]) + b"ab")
    assert await stream.read(2, 1) == b"ab"
    with pytest.raises(EndOfStream):
        await stream.read(2, 1)
    for cut in (b"\0\0", bytes([0, 0, 0, 3]) + b"ab"):
        with pytest.raises(NetworkFault, match="after 2 of"):
            await stream_of(cut).read(10, 1)


async def test_the_bound_is_checked_on_the_header_alone() -> None:
    with pytest.raises(WireError, match="4294967295"):
        await stream_of(b"\xff\xff\xff\xff").read(100, 1)
    with pytest.raises(NetworkFault):
        await stream_of(b"").write(b"x", 1)


def test_a_hint_survives_the_trip_and_nothing_else_does() -> None:
    identity = PeerIdentity(SEED)
    record = encode_hint(identity, ("10.1.2.3", 8091), int(NOW) + HINT_LIFETIME_S)
    hint = decode_hint(record, NOW)
    assert (hint.peer_key, hint.address) == (identity.public_key, ("10.1.2.3", 8091))
    for position in range(HINT_BYTES):
        with pytest.raises(WireError):
            decode_hint(record[:position] + bytes([record[position] ^ 1]) + record[position + 1 :], NOW)
    for late in (NOW + HINT_LIFETIME_S + 1, NOW - 3 * HINT_LIFETIME_S):
        with pytest.raises(WireError, match="expired"):
            decode_hint(record, late)


@given(st.binary(max_size=HINT_BYTES + 5))
def test_foreign_bytes_are_never_a_hint(record: bytes) -> None:
    with pytest.raises(WireError):
        decode_hint(record, NOW)


@dataclass
class Record:
    key: bytes
    value: bytes
    expiration_time: float


def test_the_board_keeps_a_hint_only_under_its_peers_key_and_expiry() -> None:
    identity, expires = PeerIdentity(SEED), int(time.time()) + 60
    value = encode_hint(identity, ("10.1.2.3", 8091), expires)
    validator = SignedHints(lambda key: b"id" + key)
    mine = b"id" + identity.public_key
    assert validator.validate(Record(mine, value, float(expires)))
    assert not validator.validate(Record(b"id" + bytes(32), value, float(expires)))
    assert not validator.validate(Record(mine, value, expires + 1e9)), "a record cannot be pinned"
    assert not validator.validate(Record(mine, value[:-1], float(expires)))


class Shelf:
    """A DHT of one node."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}

    async def get(self, key: bytes) -> bytes | None:
        return self.records.get(key)

    async def store(self, key: bytes, value: bytes, expires: float) -> None:
        self.records[key] = value

    async def greet(self, peer_key: bytes) -> bool:
        return True

    async def shutdown(self) -> None:
        pass


@pytest.mark.parametrize("address", [("10.1.2.3", 8091), None])
async def test_a_peer_without_a_port_gives_no_hint_and_finds_those_of_others(address: tuple[str, int] | None) -> None:
    shelf, other, identity = Shelf(), PeerIdentity(bytes([7]) * 32), PeerIdentity(bytes([8]) * 32)
    expires = int(time.time()) + HINT_LIFETIME_S
    shelf.records[other.public_key] = encode_hint(other, ("10.9.9.9", 1), expires)
    board = HintBoard(shelf, identity, address)
    board.start()
    board.meet(other.public_key)
    await asyncio.sleep(0.05)
    assert await board.find(other.public_key) == ("10.9.9.9", 1)
    assert await board.find(identity.public_key) == address
    await board.stop()


async def test_a_stream_that_was_closed_and_has_sent_its_rest_can_be_aborted() -> None:
    """Its socket knows no loop any more; a node that ends aborts all its streams."""

    async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(read_all, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        stream = FrameStream(b"peer", reader, writer, writer.transport.abort, Traffic())
        writer.write(bytes(32 << 20))  # more than the kernel takes at once
        await stream.close()
        await asyncio.wait_for(writer.wait_closed(), 20)
        stream.abort()
