from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from samples import commitment, key, neuron, roster

from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import MAX_REQUEST_BYTES, PeerBook
from distributed_training.protocol.types import Neuron, Role, Roster
from distributed_training.protocol.wire import binding_message, encode_request

ALICE, BOB, EVE = (PeerIdentity(bytes([i]) * 32) for i in (1, 2, 3))


class ListeningTransport(MemoryTransport):
    """Remembers what it learnt, as the libp2p transport does: the addresses of a peer key, best first."""

    def __init__(self, switch: MemorySwitch, identity: PeerIdentity) -> None:
        super().__init__(switch, identity)
        self.addresses: dict[bytes, tuple[tuple[str, int], ...]] = {}

    def learn(self, peer_key: bytes, *addresses: tuple[str, int]) -> None:
        self.addresses[peer_key] = addresses


def person(number: int, identity: PeerIdentity, **more: Any) -> Neuron:
    return neuron(number, commitment=commitment(number, peer_key=identity.public_key), **more)


def book(switch: MemorySwitch, number: int, identity: PeerIdentity, *people: Neuron) -> PeerBook:
    made = PeerBook(ListeningTransport(switch, identity), 1, key(number), identity.sign, verify_peer)
    if people:
        made.update(roster(*people))
    return made


async def answer(
    asker: PeerBook, answerer: PeerBook, send: Callable[[PeerBook], Awaitable[Stream]]
) -> tuple[Neuron, bytes] | PeerFault:
    """What `answerer.accept` makes of the stream that `send` opens."""
    outcome: asyncio.Future[tuple[Neuron, bytes] | PeerFault] = asyncio.get_running_loop().create_future()

    async def handler(stream: Stream) -> None:
        try:
            outcome.set_result(await answerer.accept(stream, 1.0))
        except PeerFault as fault:
            outcome.set_result(fault)

    answerer.transport.serve("hello", handler)
    await asker.transport.start()
    await answerer.transport.start()
    stream = await send(asker)
    try:
        return await asyncio.wait_for(outcome, 2.0)
    finally:
        await stream.close()
        await asker.transport.stop()
        await answerer.transport.stop()


def hello(asker: PeerBook) -> Awaitable[Stream]:
    return asker.open(BOB.public_key, "hello", b"what", 1.0)


def raw(frame: bytes) -> Callable[[PeerBook], Awaitable[Stream]]:
    async def send(asker: PeerBook) -> Stream:
        stream = await asker.transport.open(BOB.public_key, "hello", 1.0)
        await stream.write(frame, 1.0)
        return stream

    return send


PEOPLE = (person(1, ALICE), person(2, BOB))


async def test_a_request_says_who_asks_for_what() -> None:
    switch = MemorySwitch()
    bob = book(switch, 2, BOB, *PEOPLE)
    assert await answer(book(switch, 1, ALICE, *PEOPLE), bob, hello) == (PEOPLE[0], b"what")


async def test_a_binding_is_checked_once_per_registration() -> None:
    switch = MemorySwitch()
    checked: list[bytes] = []

    def counting(public_key: bytes, message: bytes, signature: bytes) -> bool:
        checked.append(message)
        return verify_peer(public_key, message, signature)

    bob = PeerBook(MemoryTransport(switch, BOB), 1, key(2), BOB.sign, counting)
    alice = book(switch, 1, ALICE, *PEOPLE)
    await bob.transport.start()
    for registered in (1, 1, 7):
        people = (person(1, ALICE, registered_block=registered), PEOPLE[1])
        alice.update(roster(*people))
        bob.update(roster(*people))
        got: asyncio.Queue[Neuron] = asyncio.Queue()

        async def handler(stream: Stream, got: asyncio.Queue[Neuron] = got) -> None:
            got.put_nowait((await bob.accept(stream, 1.0))[0])

        method = f"hello {registered} {len(checked)}"
        bob.transport.serve(method, handler)
        stream = await alice.open(BOB.public_key, method, b"", 1.0)
        assert await asyncio.wait_for(got.get(), 2.0) == people[0]
        await stream.close()
    await bob.transport.stop()
    assert checked == [binding_message(1, key(1), 1), binding_message(1, key(1), 7)]


REFUSALS: dict[str, tuple[tuple[Neuron, ...], str]] = {
    "unknown hotkey": ((PEOPLE[1],), "not on the roster"),
    "no commitment": ((neuron(1, commitment=None), PEOPLE[1]), "not on the roster"),
    "another peer key on chain": ((person(1, EVE), PEOPLE[1]), "names another peer key"),
    "registered again": ((person(1, ALICE, registered_block=9), PEOPLE[1]), "did not sign this registration"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_who_is_refused(case: str) -> None:
    people, message = REFUSALS[case]
    switch = MemorySwitch()
    outcome = await answer(book(switch, 1, ALICE, *PEOPLE), book(switch, 2, BOB, *people), hello)
    assert isinstance(outcome, PeerFault) and message in str(outcome)


async def test_a_stolen_claim_binds_nothing() -> None:
    """Eve's hotkey names Alice's peer key on chain: she cannot speak as Alice, nor as the owner of that key."""
    people = (*PEOPLE, person(3, ALICE))
    switch = MemorySwitch()
    signature = EVE.sign(binding_message(1, key(3), 1))
    as_herself = await answer(
        book(switch, 3, EVE, *people), book(switch, 2, BOB, *people), raw(encode_request(key(3), signature, b""))
    )
    assert isinstance(as_herself, PeerFault) and "another peer key" in str(as_herself)
    switch = MemorySwitch()
    as_alice = await answer(
        book(switch, 3, EVE, *people), book(switch, 2, BOB, *people), raw(encode_request(key(1), signature, b""))
    )
    assert isinstance(as_alice, PeerFault)
    switch = MemorySwitch()
    assert await answer(book(switch, 1, ALICE, *people), book(switch, 2, BOB, *people), hello) == (PEOPLE[0], b"what")


@pytest.mark.parametrize("frame", [b"", b"x" * 95])
async def test_a_malformed_first_frame_is_the_peers_fault(frame: bytes) -> None:
    switch = MemorySwitch()
    outcome = await answer(book(switch, 1, ALICE, *PEOPLE), book(switch, 2, BOB, *PEOPLE), raw(frame))
    assert isinstance(outcome, PeerFault)


async def test_a_stranger_cannot_have_more_read_than_a_request_holds() -> None:
    switch = MemorySwitch()
    longest = raw(encode_request(key(1), ALICE.sign(binding_message(1, key(1), 1)), b"").ljust(MAX_REQUEST_BYTES, b"x"))
    known = await answer(book(switch, 1, ALICE, *PEOPLE), book(switch, 2, BOB, *PEOPLE), longest)
    assert isinstance(known, tuple) and known[0] == PEOPLE[0]
    switch = MemorySwitch()
    outcome = await answer(
        book(switch, 1, ALICE, *PEOPLE), book(switch, 2, BOB, *PEOPLE), raw(bytes(MAX_REQUEST_BYTES + 1))
    )
    assert isinstance(outcome, WireError) and f"at most {MAX_REQUEST_BYTES}" in str(outcome)


async def test_nobody_is_known_before_the_first_roster() -> None:
    switch = MemorySwitch()
    bob = book(switch, 2, BOB)
    assert bob.neurons == ()
    outcome = await answer(book(switch, 1, ALICE, *PEOPLE), bob, hello)
    assert isinstance(outcome, PeerFault) and "not on the roster" in str(outcome)


async def test_an_absent_peer_is_a_network_fault() -> None:
    with pytest.raises(NetworkFault):
        await hello(book(MemorySwitch(), 1, ALICE, *PEOPLE))


# --- addresses -------------------------------------------------------------------------------------------

TRUE, FALSE = ("10.0.0.1", 1), ("6.6.6.6", 6)


def learnt(reader: PeerBook, people: Roster) -> tuple[tuple[str, int], ...]:
    reader.update(people)
    transport = reader.transport
    assert isinstance(transport, ListeningTransport)
    return transport.addresses.get(ALICE.public_key, ())


def test_addresses_of_the_roster_are_learnt() -> None:
    reader = book(MemorySwitch(), 2, BOB)
    assert learnt(reader, roster(person(1, ALICE, address=TRUE), PEOPLE[1])) == (TRUE,)
    assert learnt(book(MemorySwitch(), 2, BOB), roster(person(1, ALICE, address=None))) == ()
    assert learnt(book(MemorySwitch(), 2, BOB), roster(neuron(1, commitment=None))) == ()
    assert reader.neurons[0].address == TRUE


def test_the_old_address_of_a_miner_that_does_not_reduce_is_forgotten() -> None:
    """The chain takes no address back, so who lost its open port says so in its commitment."""
    reader = book(MemorySwitch(), 2, BOB)
    assert learnt(reader, roster(person(1, ALICE, address=TRUE))) == (TRUE,)
    without = neuron(1, address=TRUE, commitment=commitment(1, reduces=False, peer_key=ALICE.public_key))
    assert learnt(reader, roster(without)) == ()
    assert isinstance(reader.transport, ListeningTransport) and ALICE.public_key in reader.transport.addresses
    serving = commitment(1, Role.VALIDATOR, reduces=False, peer_key=ALICE.public_key)
    assert learnt(reader, roster(neuron(1, Role.VALIDATOR, address=TRUE, commitment=serving))) == (TRUE,)


@pytest.mark.parametrize("more", [{}, {"stake": 9.0}], ids=["poor", "rich"])
@pytest.mark.parametrize("reduces", [True, False])
def test_a_claim_that_is_not_proven_takes_no_address_away(reduces: bool, more: dict[str, Any]) -> None:
    """Whatever the thief has, and says: with an address of its own, or as one that listens nowhere."""
    claim = commitment(3, reduces=reduces, peer_key=ALICE.public_key)
    thief = neuron(3, commitment=claim, address=FALSE, registered_block=0, **more)
    found = learnt(book(MemorySwitch(), 2, BOB), roster(person(1, ALICE, address=TRUE, registered_block=5), thief))
    assert TRUE in found and set(found) <= {TRUE, FALSE} and (FALSE in found) is reduces


async def test_a_proven_claim_stands_alone() -> None:
    alice = person(1, ALICE, address=TRUE, registered_block=5)
    people = (alice, PEOPLE[1], person(3, ALICE, address=FALSE, registered_block=1, stake=9.0))
    switch = MemorySwitch()
    bob = book(switch, 2, BOB)
    assert learnt(bob, roster(*people)) == (FALSE, TRUE)  # nothing proven yet: both are tried
    assert await answer(book(switch, 1, ALICE, *people), bob, hello) == (alice, b"what")
    assert learnt(bob, roster(*people)) == (TRUE,)
    assert [bob.is_anothers(ALICE.public_key, n.public_key) for n in people] == [False, True, True]
    assert not bob.is_anothers(EVE.public_key, key(3)), "nobody has proven that one"


async def test_a_request_that_is_not_read_in_time_is_given_up() -> None:
    switch = MemorySwitch()
    alice, bob = book(switch, 1, ALICE, *PEOPLE), MemoryTransport(switch, BOB)
    ended: asyncio.Queue[bytes | None] = asyncio.Queue()
    given_up = asyncio.Event()

    async def stalls(stream: Stream) -> None:
        await given_up.wait()
        try:
            ended.put_nowait(await stream.read(1 << 20, 1.0))
        except NetworkFault:
            ended.put_nowait(None)

    bob.serve("hello", stalls)
    await bob.start()
    with pytest.raises(DeadlineMissed):
        await alice.open(BOB.public_key, "hello", bytes(1 << 19), 0.05)
    given_up.set()
    assert await asyncio.wait_for(ended.get(), 2.0) is None  # closed: nothing half sent is taken for a request
    await bob.stop()
