"""Who can be reached from outside (protocol section 2), and how a node without an open port stays in reach.

A node behind NAT keeps one connection open to every validator; libp2p carries streams both ways over it, so validators
can ask for chunks although they cannot dial. A node that published an address asks validators to knock there: nothing
else tells, since peers that it has dialled itself reach it even when its port is shut.

    asker                                       validator
    "reach", one byte: 0 = are you there    ->
    "reach", one byte: 1 = knock at my port ->
                                            <-  one byte: 0 = here, 1 = the port is open, 2 = it is shut
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from enum import IntEnum

from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Neuron, Role

METHOD = "reach"
ASK_S = 10.0
HELLO_EVERY_S = 10.0
RETRY_S, MAX_RETRY_S = 1.0, 60.0
KNOCK_S = 4.0
KNOCK_EVERY_S = 60.0  # for one uid; more would be a way to make a validator dial
FIRST_CHECK_S = 20.0
CHECK_EVERY_S = 600.0
MAX_ASKED = 3

log = logging.getLogger(__name__)


class Question(IntEnum):
    HELLO = 0
    KNOCK = 1


class Answer(IntEnum):
    HERE = 0
    OPEN = 1
    SHUT = 2


class ReachService:
    """Answers registered peers. Knocks only at the address that the chain has for the asker, once in a while."""

    def __init__(self, peers: PeerBook, own_address: tuple[str, int] | None) -> None:
        self._peers = peers
        self._private = own_address is None or not ipaddress.ip_address(own_address[0]).is_global
        self._knocked: dict[int, float] = {}  # uid -> loop time
        peers.transport.serve(METHOD, self._on_reach)

    async def _on_reach(self, stream: Stream) -> None:
        neuron, payload = await self._peers.accept(stream, ASK_S)
        if payload not in (bytes([Question.HELLO]), bytes([Question.KNOCK])):
            raise WireError("reach: malformed question")
        answer = Answer.HERE if payload[0] == Question.HELLO else await self._knock(neuron)
        await stream.write(bytes([answer]), ASK_S)

    async def _knock(self, neuron: Neuron) -> Answer:
        now, address = asyncio.get_running_loop().time(), neuron.reachable_at
        if address is None:
            raise PeerFault(f"uid {neuron.uid} has published no address to knock at")
        if not self._private and not ipaddress.ip_address(address[0]).is_global:
            return Answer.SHUT  # nobody on the Internet can dial it, and nobody makes us knock inside our own network
        if now - self._knocked.get(neuron.uid, float("-inf")) < KNOCK_EVERY_S:
            raise PeerFault(f"uid {neuron.uid} asks too often for a knock")
        self._knocked[neuron.uid] = now
        return Answer.OPEN if await self._peers.transport.answers(address, KNOCK_S) else Answer.SHUT


async def ask(peers: PeerBook, peer_key: bytes, question: Question) -> Answer:
    """Raises NetworkFault, DeadlineMissed, WireError, PeerFault."""
    async with deadline(ASK_S, "reach"):
        stream = await peers.open(peer_key, METHOD, bytes([question]), ASK_S)
        try:
            said = await stream.read(1, ASK_S)
        finally:
            await stream.close()
    try:
        return Answer(int.from_bytes(said, "big"))
    except ValueError:
        raise WireError("reach: malformed answer") from None


def validators(peers: PeerBook, own_key: bytes) -> list[bytes]:
    """Peer keys of the validators on the roster, most stake first, ourselves left out."""
    found = [
        (-n.stake, n.uid, n.commitment.peer_key)
        for n in peers.neurons
        if n.may_validate and n.commitment is not None and n.commitment.role is Role.VALIDATOR
    ]
    return [key for _, _, key in sorted(found) if key != own_key]


async def keep_in_touch(peers: PeerBook, own_key: bytes) -> None:
    """Hold a connection to every validator, so that they can open streams to us. Runs until cancelled."""
    held: dict[bytes, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            wanted = validators(peers, own_key)
            for key in [key for key in held if key not in wanted]:
                held.pop(key).cancel()
            for key in wanted:
                if key not in held:
                    held[key] = tasks.create_task(_hold(peers, key), name="keep in touch")
            await asyncio.sleep(RETRY_S)


async def _hold(peers: PeerBook, key: bytes) -> None:
    """Greet one validator again and again; dials when the connection is lost, ends one that is dead at its far end."""
    failures = missed = 0
    while True:
        try:
            await ask(peers, key, Question.HELLO)
            failures = missed = 0
        except (NetworkFault, PeerFault) as error:
            failures, missed = failures + 1, missed + 1 if isinstance(error, DeadlineMissed) else 0
            if failures == 1:
                log.info("no contact with the validator %s: %s", key.hex()[:12], error)
            if missed >= 2:
                await peers.transport.disconnect(key)
        await asyncio.sleep(min(MAX_RETRY_S, RETRY_S * 2 ** min(failures, 16)) if failures else HELLO_EVERY_S)


async def watch_port(peers: PeerBook, own_key: bytes, address: tuple[str, int], tell: Callable[[str], None]) -> None:
    """Have validators knock at our port now and then; `tell` when none of those that answer gets in."""
    shut = False
    await asyncio.sleep(FIRST_CHECK_S)
    while True:
        answers = [await _knocked(peers, key) for key in validators(peers, own_key)[:MAX_ASKED]]
        known = [answer for answer in answers if answer is not None]
        if known and all(answer is Answer.SHUT for answer in known):
            shut = True
            tell(unreachable(address, len(known)))
        elif shut and known:
            shut = False
            log.info("port %d can be reached from outside again", address[1])
        await asyncio.sleep(CHECK_EVERY_S if known and not shut else KNOCK_EVERY_S + 1)


def unreachable(address: tuple[str, int], asked: int) -> str:
    """What the operator is told."""
    return (
        f"{asked} validator(s) could not connect to {address[0]}:{address[1]}, the address this node published: peers "
        f"cannot send it their slices. Open TCP port {address[1]} in the firewall and forward it in the router, or "
        "correct --axon.external_ip and --axon.external_port; if no port can be opened, restart with "
        "--axon.outbound_only"
    )


async def _knocked(peers: PeerBook, key: bytes) -> Answer | None:
    """None: it did not tell."""
    try:
        answer = await ask(peers, key, Question.KNOCK)
    except (NetworkFault, PeerFault) as error:
        log.debug("no knock by %s: %s", key.hex()[:12], error)
        return None
    return None if answer is Answer.HERE else answer
