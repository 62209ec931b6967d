"""Signed address records for the hint board (DHT): who says it listens where, and until when.

A record proves that the peer itself said so; it does not prove that the address is its own. The connection does that.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from distributed_training.errors import WireError
from distributed_training.network.identity import PeerIdentity, verify_peer

HINT_LIFETIME_S = 3600
HINT_TIMEOUT_S = 2.0
HINT_PEERS = 8  # peers that introduce us to the board; more only cost traffic
HINT_REFRESH_S = 600.0
_DOMAIN = b"distributed-training address 1"
_BODY = struct.Struct(">32s4sHQ")  # peer key, IPv4, port, expiry in unix seconds
HINT_BYTES = _BODY.size + 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddressHint:
    peer_key: bytes
    address: tuple[str, int]
    expires: int  # unix seconds


def encode_hint(identity: PeerIdentity, address: tuple[str, int], expires: int) -> bytes:
    """HINT_BYTES bytes: body and signature. Raises ValueError if the address is not an IPv4 literal and a port."""
    host = ipaddress.IPv4Address(address[0]).packed
    body = _BODY.pack(identity.public_key, host, address[1], expires)
    return body + identity.sign(_DOMAIN + body)


def decode_hint(record: bytes, now: float) -> AddressHint:
    """The hint in `record`. Raises WireError if it is malformed, expired, dated too far ahead or not signed."""
    if len(record) != HINT_BYTES:
        raise WireError(f"an address hint has {HINT_BYTES} bytes, not {len(record)}")
    body, signature = record[: _BODY.size], record[_BODY.size :]
    peer_key, host, port, expires = _BODY.unpack(body)
    if not now < expires <= now + 2 * HINT_LIFETIME_S:
        raise WireError("the address hint is expired or dated too far ahead")
    if port == 0:
        raise WireError("an address hint needs a port")
    if not verify_peer(peer_key, _DOMAIN + body, signature):
        raise WireError("the address hint is not signed by its peer")
    return AddressHint(peer_key, (str(ipaddress.IPv4Address(host)), port), expires)


class SignedHints:
    """A record validator for the DHT: it stores and returns address hints under their own peer's key, nothing else.

    `record_id` maps a peer key to the key of its record in the DHT.
    """

    def __init__(self, record_id: Callable[[bytes], bytes]) -> None:
        self._record_id = record_id

    def validate(self, record: Any) -> bool:
        try:
            hint = decode_hint(record.value, time.time())
        except WireError:
            return False
        return record.key == self._record_id(hint.peer_key) and record.expiration_time == hint.expires

    def sign_value(self, record: Any) -> bytes:
        return record.value  # signed already

    def strip_value(self, record: Any) -> bytes:
        return record.value


class DhtNode(Protocol):
    """What the hint board needs of a DHT. Its keys and values come back as they were stored, or not at all."""

    async def get(self, key: bytes) -> bytes | None: ...

    async def store(self, key: bytes, value: bytes, expires: float) -> None: ...

    async def greet(self, peer_key: bytes) -> bool:
        """Ask a connected peer into our routing table. Whether it answered."""
        ...

    async def shutdown(self) -> None: ...


class HintBoard:
    """The node's part in a DHT that holds signed addresses, for peers whose address of the chain is missing or stale.

    Best effort throughout: every failure means "no hint". Records that their peer did not sign are neither stored for
    others nor believed.
    """

    def __init__(self, node: DhtNode, identity: PeerIdentity, address: tuple[str, int] | None) -> None:
        """address None: others' hints are found and kept, none is given."""
        self._node = node
        self._identity = identity
        self._address = address
        self._met: set[bytes] = set()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        if self._address is not None:
            self._spawn(self._announce_forever(self._address))

    def meet(self, peer_key: bytes) -> None:
        """Join the board through a peer that we are connected to. Returns at once."""
        if len(self._met) < HINT_PEERS and peer_key not in self._met:
            self._met.add(peer_key)
            self._spawn(self._greet(peer_key))

    async def find(self, peer_key: bytes) -> tuple[str, int] | None:
        """The address that the peer announced, or None. Takes at most HINT_TIMEOUT_S."""
        try:
            async with asyncio.timeout(HINT_TIMEOUT_S):
                record = await self._node.get(peer_key)
            hint = decode_hint(record, time.time()) if record else None
            return hint.address if hint is not None and hint.peer_key == peer_key else None
        except Exception as error:
            log.debug("no hint for %s: %r", peer_key.hex()[:12], error)
            return None

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.5)
        with suppress(Exception):
            await asyncio.wait_for(self._node.shutdown(), 0.5)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="hint board")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _greet(self, peer_key: bytes) -> None:
        if await self._node.greet(peer_key):
            self._news.set()
        else:
            self._met.discard(peer_key)

    async def _announce_forever(self, address: tuple[str, int]) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), HINT_REFRESH_S)
            self._news.clear()
            expires = int(time.time()) + HINT_LIFETIME_S
            try:
                record = encode_hint(self._identity, address, expires)
                async with asyncio.timeout(10):
                    await self._node.store(self._identity.public_key, record, float(expires))
            except Exception as error:
                log.debug("the address was not announced: %r", error)
            await asyncio.sleep(2)  # several peers met at once make one announcement
