"""How a node without an open port stays in reach (protocol section 2): it keeps one connection open to every validator.

libp2p carries streams both ways over it, so validators can ask for chunks although they cannot dial. An empty greeting,
answered by an empty frame, tells that the connection still works.
"""

from __future__ import annotations

import asyncio
import logging

from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.ongoing import Ongoing
from distributed_training.protocol.manifest import RunManifest

METHOD = "reach"
ASK_S = 10.0
HELLO_EVERY_S = 10.0
RETRY_S, MAX_RETRY_S = 1.0, 60.0

log = logging.getLogger(__name__)


class ReachService:
    """Answers the greetings of registered peers."""

    def __init__(self, peers: PeerBook) -> None:
        self._peers = peers
        peers.transport.serve(METHOD, self._on_reach)

    async def _on_reach(self, stream: Stream) -> None:
        _, payload = await self._peers.accept(stream, ASK_S)
        if payload:
            raise WireError("reach: malformed greeting")
        await stream.write(b"", ASK_S)


async def greet(peers: PeerBook, peer_key: bytes) -> None:
    """Raises NetworkFault, DeadlineMissed, WireError, PeerFault."""
    async with deadline(ASK_S, "reach"), closing(peers.open(peer_key, METHOD, b"", ASK_S)) as stream:
        await stream.read(0, ASK_S)


def validators(peers: PeerBook, manifest: RunManifest, own_key: bytes) -> list[bytes]:
    """Peer keys of the run's validators, most stake first, ourselves left out."""
    found = [(-n.stake, n.uid, n.commitment.peer_key) for n in peers.validators(manifest) if n.commitment is not None]
    return [key for _, _, key in sorted(found) if key != own_key]


async def keep_in_touch(peers: PeerBook, manifest: RunManifest, own_key: bytes) -> None:
    """Hold a connection to every validator, so that they can open streams to us. Runs until cancelled."""
    held: dict[bytes, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            wanted = validators(peers, manifest, own_key)
            for key in [key for key in held if key not in wanted]:
                held.pop(key).cancel()
            for key in wanted:
                if key not in held:
                    held[key] = tasks.create_task(_hold(peers, key), name="keep in touch")
            await asyncio.sleep(RETRY_S)


async def _hold(peers: PeerBook, key: bytes) -> None:
    """Greet one validator again and again; dials when the connection is lost, ends one that is dead at its far end."""
    failures = missed = 0
    lost = Ongoing(log, f"no contact with the validator {key.hex()[:12]}", f"in contact again with {key.hex()[:12]}")
    while True:
        try:
            await greet(peers, key)
            failures = missed = 0
            lost.end()
        except (NetworkFault, PeerFault) as error:
            failures, missed = failures + 1, missed + 1 if isinstance(error, DeadlineMissed) else 0
            lost.begin(error)
            if missed >= 2:
                await peers.transport.disconnect(key)
        await asyncio.sleep(min(MAX_RETRY_S, RETRY_S * 2 ** min(failures, 16)) if failures else HELLO_EVERY_S)
