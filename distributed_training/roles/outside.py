"""Where others reach this node (protocol section 2): validators say at which address they see it, and knock there.

    asker                                           validator
    "where", two bytes: the port to knock at    ->
                                                <-  one byte: 1 = it is open, 2 = it is shut
                                                    four bytes: the IPv4 address that the question came from

Nothing else tells: peers that a node has dialled itself reach it even when its port is shut. A newcomer has to ask
before the roster knows it, so a validator answers strangers too; it knocks nowhere but where the question came from.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from distributed_training.addresses import unreachable
from distributed_training.errors import ChainFault, ConfigError, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream, Transport, closing, deadline
from distributed_training.network.peers import PeerBook
from distributed_training.ongoing import Ongoing

METHOD = "where"
PORT_BYTES, ANSWER_BYTES = 2, 5
OPEN, SHUT = 1, 2
ASK_S = 10.0
KNOCK_S = 4.0
TURN_S = 60.0  # between two knocks for one asker; more would be a way to make a validator dial
MAX_STRANGERS = 30  # knocks in TURN_S for all who are not on the roster
FIRST_CHECK_S = 20.0
CHECK_EVERY_S = 600.0
MAX_ASKED = 5
LOOPBACK = "127.0.0.1"  # which no chain publishes
TRIES = 3

Address = tuple[str, int]
Seen = tuple[str, bool]  # by one validator: the IP that we come from, and whether our port is open there

log = logging.getLogger(__name__)


class KnockService:
    """Answers everybody, each once in a while. `public`: on the Internet, where nobody makes us knock inside our own
    network."""

    def __init__(self, peers: PeerBook, *, public: bool) -> None:
        self._peers, self._public = peers, public
        self._turns: dict[bytes | str, float] = {}  # peer key of the roster, or a stranger's address -> loop time
        peers.transport.serve(METHOD, self._on_where)

    async def _on_where(self, stream: Stream) -> None:
        question, ip = await stream.read(PORT_BYTES, ASK_S), stream.source
        port = int.from_bytes(question, "big")
        if len(question) != PORT_BYTES or port == 0:
            raise WireError("where: malformed question")
        if ip is None:
            raise PeerFault("where: it comes from no IPv4 address")
        is_open = False  # nobody on the Internet can dial a private address
        if not self._public or IPv4Address(ip).is_global:
            self._take_turn(stream.peer_key, ip)
            is_open = await self._peers.transport.answers((ip, port), KNOCK_S)
        await stream.write(bytes([OPEN if is_open else SHUT]) + IPv4Address(ip).packed, ASK_S)

    def _take_turn(self, key: bytes, ip: str) -> None:
        """Raises PeerFault when it is too early for another knock."""
        known, now = self._peers.knows(key), asyncio.get_running_loop().time()
        asker = key if known else ip
        self._turns = {who: at for who, at in self._turns.items() if now - at < TURN_S}
        strangers = sum(isinstance(who, str) for who in self._turns)
        if asker in self._turns or (not known and strangers >= MAX_STRANGERS):
            raise PeerFault("where: asks too often for a knock")
        self._turns[asker] = now


@dataclass(frozen=True, slots=True)
class Witnesses:
    """`who`: peer keys of validators, those with most stake first. `public`: peers are all over the Internet. `ask_s`:
    how long one of them is waited for."""

    transport: Transport
    who: Callable[[], Sequence[bytes]]
    public: bool
    ask_s: float = ASK_S

    async def look(self, port: int) -> list[Seen]:
        """What the first of them say; without those that say nothing."""
        answers = await asyncio.gather(*(self._ask(key, port) for key in self.who()[:MAX_ASKED]))
        return [seen for seen in answers if seen is not None]

    async def _ask(self, key: bytes, port: int) -> Seen | None:
        try:
            async with deadline(self.ask_s, METHOD), closing(self.transport.open(key, METHOD, ASK_S)) as stream:
                await stream.write(port.to_bytes(PORT_BYTES, "big"), ASK_S)
                answer = await stream.read(ANSWER_BYTES, ASK_S)
            if len(answer) != ANSWER_BYTES or answer[0] not in (OPEN, SHUT):
                raise WireError("where: malformed answer")
        except (NetworkFault, PeerFault) as error:
            log.debug("%s does not say where it sees us: %s", key.hex()[:12], error)
            return None
        return str(IPv4Address(answer[1:])), answer[0] == OPEN

    async def find(self, port: int, former: str | None) -> Address:
        """Our address as they see it; with the IP `former`, of an earlier start, while nobody is there to ask.

        Raises ConfigError.
        """
        seen = await self.look(port)
        for _ in range(TRIES - 1):
            if seen or not self.who():
                break
            await asyncio.sleep(TURN_S / 2 + 1)  # they are away, or it is not our turn yet
            seen = await self.look(port)
        found = agreed(seen, port, public=self.public)
        if not seen and former is not None:
            log.warning("no validator is there to say at which address it sees this node: going on with %s", former)
            return former, port
        if isinstance(found, str):
            raise ConfigError(f"nobody could reach this node: it listens everywhere, and {found}. {how_to_open(port)}")
        log.info("announcing %s:%d, where most of %d validators see this node and reach it", *found, len(seen))
        return found

    async def watch(
        self, address: Address, tell: Callable[[str], None], move: Callable[[Address], Awaitable[None]] | None
    ) -> None:
        """Have them knock now and then; `tell` when none of those that see us at `address` gets in. `move` announces
        another one, where most of them see us by now; None: the operator gave this one."""
        port, doubted = address[1], ""
        shut = Ongoing(log, "peers cannot reach this node", "peers reach this node again", logging.ERROR)
        unsaid = Ongoing(log, "not announced at the new address yet", "announced at the new address")
        await asyncio.sleep(FIRST_CHECK_S)
        while True:
            seen = await self.look(port)
            found, here = agreed(seen, port, public=self.public), [is_open for ip, is_open in seen if ip == address[0]]
            if here and not any(here):
                what = f"{len(here)} validator(s) could not connect to {address[0]}:{port}, as announced"
                why = f"{what}. {how_to_open(port)}"
                shut.begin(why)
                tell(why)
            elif here and shut.end():
                pass
            elif seen and not here and found != doubted:
                where = found if isinstance(found, str) else f"they see and reach it at {found[0]}"
                log.warning("no validator sees this node at %s, where it is announced: %s", address[0], where)
                if move is None or isinstance(found, str):
                    doubted = found  # once; of a given address it is the operator's word against theirs
                else:
                    try:
                        await move(found)
                        address = found
                        unsaid.end()
                    except ChainFault as error:
                        unsaid.begin(error)
            await asyncio.sleep(CHECK_EVERY_S if any(is_open for is_open in here) else TURN_S + 1)


def agreed(seen: Sequence[Seen], port: int, *, public: bool) -> Address | str:
    """Where most of those that see us somewhere dialable see and reach us; in words, why there is no such address."""
    if not seen:
        return "no validator is there that could say at which address it is seen"
    why = {ip: unreachable(ip, public=public or ip == LOOPBACK) for ip, _ in seen}
    dialable = [(ip, is_open) for ip, is_open in seen if why[ip] is None]
    if not dialable:
        return f"validators see it at {seen[0][0]} only: {why[seen[0][0]]}"
    ip, votes = Counter(ip for ip, _ in dialable).most_common(1)[0]
    if 2 * votes <= len(dialable):
        return f"validators see it at different addresses ({', '.join(sorted({ip for ip, _ in dialable}))})"
    opened = dialable.count((ip, True))
    if 2 * opened <= len(dialable):
        return f"{votes - opened} of {votes} validators that see it at {ip} cannot connect to its port {port} there"
    return ip, port


def how_to_open(port: int) -> str:
    return (
        f"Open TCP port {port} in the firewall and forward it in the router, and give the address that peers dial with "
        "--axon.external_ip (another port there: --axon.external_port); a miner that can open no port starts with "
        "--axon.outbound_only"
    )
