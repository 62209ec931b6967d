"""What peers say of this node: is its port open to them, and how fast do their bytes come.

Asked under a peer key of this moment, so that a running node of the same hotkey notices nothing. Only where none runs,
and the chain knows the key in its folder, that key dials out for a moment, because strangers are given less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed_training.addresses import unreachable
from distributed_training.averaging.needs import needs
from distributed_training.data.page_file import PAGES_FILE, most_bytes
from distributed_training.doctor.base import Finding, Unmet, in_time, sized
from distributed_training.doctor.run import own_key
from distributed_training.doctor.standing import STATUS
from distributed_training.errors import ConfigError, LocalFault, NetworkFault, PeerFault, said
from distributed_training.finding.content import Wanted
from distributed_training.finding.serving import PeerSource
from distributed_training.network.base import Transport
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.peers import claimed_addresses
from distributed_training.paths import is_missing
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Neuron, Role, Roster
from distributed_training.roles.outside import KNOCK_S, Seen, Witnesses, agreed, how_to_open

if TYPE_CHECKING:
    from distributed_training.doctor.chain import Subnet
    from distributed_training.doctor.subject import Subject
    from distributed_training.network.libp2p import Libp2pTransport

PORT, SPEED = "reached by peers", "bandwidth"
ASK_S = KNOCK_S + 2.5  # a validator knocks that long at a port that swallows what comes
MEASURE_S, MOST_BYTES = 3.0, 4 << 20  # of one peer
LEAST_BYTES = 256 << 10  # fewer tell nothing of a line
PEERS = 3
LONGEST_S = 10.0


async def _listener(subject: Subject, port: int) -> Libp2pTransport:
    """A stranger at the address of the node, on `port`; 0: a free one. Raises ConfigError, LocalFault, Unmet."""
    await subject.transport.get()  # it loads hivemind, and torch with that, in a thread
    from distributed_training.network.libp2p import Libp2pTransport

    transport = Libp2pTransport(subject.scratch / "listener.key", subject.config.axon.ip, port, hints=False)
    subject.stack.push_async_callback(transport.stop)
    await transport.start()
    return transport


async def _is_free(host: str, port: int) -> bool:
    from distributed_training.network.ports import free_port

    try:
        await free_port(host, port, wait_s=0.0)
    except ConfigError:
        return False
    return True


def validators_of(roster: Roster, run: bytes | None) -> list[bytes]:
    """Peer keys of validators that can be dialled: the run's first, those with most stake before others."""
    known = [(n, n.commitment) for n in roster.neurons if n.may_validate and n.reachable_at is not None]
    said_ = [
        (c.run != run, -n.stake, n.uid, c.peer_key) for n, c in known if c is not None and c.role is Role.VALIDATOR
    ]
    return [key for *_, key in sorted(said_)]


def learn(transport: Transport, roster: Roster) -> None:
    for peer_key, addresses in claimed_addresses(roster.neurons).items():
        transport.learn(peer_key, *addresses)


# --- the port ---------------------------------------------------------------------------------------


async def check_port(subject: Subject) -> list[Finding]:
    config, axon = subject.config, subject.config.axon
    if subject.role is Role.OWNER:
        return [Finding(PORT, "skipped", "an owner need not be dialled")]
    if axon.outbound_only:
        return [Finding(PORT, "skipped", "--axon.outbound_only: none is used; the node reduces nothing")]
    if config.announced is not None and (why := unreachable(config.announced[0], public=config.is_public)):
        fix = "give the address that the Internet sees with --axon.external_ip; with no open port: --axon.outbound_only"
        return [Finding(PORT, "fail", f"{config.announced[0]} cannot be dialled by peers: {why}", fix)]
    free = await _is_free(axon.ip, axon.port)
    if not free and subject.node is None:
        raise Unmet(f"port {axon.port} is another process's: nobody can be asked to knock at it")
    subnet, run, outside = await subject.subnet.get(), await _run_tag(subject), axon.external_port or axon.port
    if not free and (at := await _announced(subject, subnet)) not in (None, outside):
        told = f"port {axon.port} is not this hotkey's running node, which announced port {at}: another process has it"
        return [Finding(PORT, "fail", told, "give the port of that node with --axon.port, or another one")]
    who = validators_of(subnet.roster, run)
    if not who:
        return [Finding(PORT, "skipped", "no validator has said on chain where it can be asked: nobody can knock")]
    transport = await _listener(subject, axon.port if free else 0)
    learn(transport, subnet.roster)
    seen = await Witnesses(transport, lambda: who, config.is_public, ASK_S).look(outside)
    return [knocked(seen, outside, config.announced, public=config.is_public, running=not free)]


async def _announced(subject: Subject, subnet: Subnet) -> int | None:
    me = subnet.roster.by_public_key(await own_key(subject))
    return None if me is None or me.address is None else me.address[1]


async def _run_tag(subject: Subject) -> bytes | None:
    try:
        return (await subject.found.get())[1].tag
    except Unmet:
        return None


def knocked(
    seen: Sequence[Seen], port: int, announced: tuple[str, int] | None, *, public: bool, running: bool
) -> Finding:
    """By what validators say. running: it is the node itself that listens there. Pure."""
    what = "the running node" if running else "a listener of this moment"
    if not seen:
        told = "no validator said whether it reaches this machine: they are away, or one asked within the last minute"
        return Finding(PORT, "warn", told, f"ask again in a minute; {STATUS} shows who is there")
    here = [is_open for ip, is_open in seen if announced is not None and ip == announced[0]]
    if announced is not None and any(here):
        return Finding(
            PORT, "ok", f"{sum(here)} of {len(seen)} validators reached {what} at {announced[0]}:{announced[1]}"
        )
    found = agreed(seen, port, public=public)
    if isinstance(found, str):
        return Finding(PORT, "fail", f"{found} ({what} was there)", how_to_open(port))
    if announced is not None and found[0] != announced[0]:
        told = f"validators see and reach this machine at {found[0]}:{found[1]}, {announced[0]} would be announced"
        return Finding(PORT, "warn", told, "leave --axon.external_ip out, unless you know that both addresses work")
    return Finding(PORT, "ok", f"most of {len(seen)} validators reached {what} at {found[0]}:{found[1]}")


# --- bandwidth --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Took:
    """What came from one peer. `why`: why nothing more did."""

    name: str
    num_bytes: int
    seconds: float
    why: str = ""

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        if not self.num_bytes:
            return f"{self.name}: {self.why or 'its file is too small'}"
        return f"{self.name} {sized(self.num_bytes)} at {sized(self.bytes_per_s)}/s"


async def check_bandwidth(subject: Subject) -> list[Finding]:
    subnet, (_, manifest) = await subject.subnet.get(), await subject.found.get()
    who = _donors(subnet.roster, manifest, await own_key(subject))
    if not who:
        return [Finding(SPEED, "skipped", "no node of the run says on chain where it can be asked")]
    transport, known = await _transport(subject, subnet.roster.by_public_key(await own_key(subject)))
    learn(transport, subnet.roster)
    wanted = Wanted(PAGES_FILE, bytes.fromhex(manifest.data.pages_sha256), most_bytes(manifest.data.num_pages))
    took = await asyncio.gather(*(take(transport, key, name, wanted) for key, name in who))
    async with in_time(LONGEST_S, "what the run asks for was not known"):
        needed = needs(manifest, await subject.num_coords.get(), subnet.facts.block_s).bits_per_s / 8
    return [speed(took, needed, known=known)]


def _donors(roster: Roster, manifest: RunManifest, own: bytes) -> list[tuple[bytes, str]]:
    """Three of the run's nodes, of miners and validators those that spoke last."""
    found = [
        (-(n.commitment_block or 0), n.uid, c.peer_key)
        for n in roster.neurons
        if (c := n.commitment) is not None and c.run == manifest.tag and n.reachable_at and n.public_key != own
    ]
    return [(key, f"uid {uid}") for _, uid, key in sorted(found)[:PEERS]]


async def _transport(subject: Subject, me: Neuron | None) -> tuple[Transport, bool]:
    """(who asks, whether peers know it)"""
    path = subject.config.node_dir / "identity.key"
    if me is None or me.commitment is None or subject.node is not None or is_missing(path):
        return await subject.transport.get(), False
    stranger = await subject.transport.get()
    from distributed_training.network.libp2p import Libp2pTransport

    with suppress(ConfigError, LocalFault, OSError):
        if PeerIdentity.load_or_create(path).public_key == me.commitment.peer_key:
            transport = Libp2pTransport(path, port=None, hints=False)
            subject.stack.push_async_callback(transport.stop)
            await transport.start()
            return transport, True
    return stranger, False


async def take(transport: Transport, peer_key: bytes, name: str, wanted: Wanted) -> Took:
    """From the first byte on, so that dialling is not counted."""
    loop, size, began, last = asyncio.get_running_loop(), 0, 0.0, 0.0
    try:
        async with asyncio.timeout(2 * MEASURE_S):
            async for piece in PeerSource(transport, peer_key, name).pieces(wanted, 0):
                last = loop.time()
                if not began:  # the first one came with the answer
                    began, size = last, 0
                    continue
                size += len(piece)
                if size >= MOST_BYTES or last - began > MEASURE_S:
                    break
    except (NetworkFault, PeerFault) as error:
        return Took(name, size, last - began, said(error))
    except TimeoutError:
        return Took(name, size, loop.time() - began if began else 0.0, "it stopped sending")
    return Took(name, size, last - began)


def speed(took: Sequence[Took], needed: float, *, known: bool) -> Finding:
    """needed: bytes a second that the run asks for, each way, while chunks travel. Pure."""
    each = "; ".join(str(t) for t in took)
    asks = f"the run asks for {sized(needed)}/s each way"
    proves = (
        "what comes in at once from them; what goes out validators measure"
        if known
        else "asked as a stranger, who is given 2 MiB at once and then 128 KiB/s"
    )
    whole, rate = sum(t.num_bytes for t in took), sum(t.bytes_per_s for t in took)
    if whole < LEAST_BYTES:
        return Finding(SPEED, "skipped", f"too little came to measure: {each}; {asks}")
    told = f"{sized(rate)}/s together ({each}; {proves}); {asks}"
    if rate >= needed:
        return Finding(SPEED, "ok", told)
    fix = "see whether something else uses this line (or those three are slow: run it again); else take a faster one"
    return Finding(SPEED, "fail" if known else "warn", told, fix)
