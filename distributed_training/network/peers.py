"""Who is at the other end: peer keys bound to hotkeys, both ways (protocol section 2).

The chain says which peer key a hotkey names; the first frame of every stream carries the peer key's signature over
that registration. A stolen claim therefore binds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, Transport
from distributed_training.network.budgets import Budget
from distributed_training.network.uplink import Uplink
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.voters import validates
from distributed_training.protocol.types import Neuron, Roster
from distributed_training.protocol.wire import binding_message, decode_request, encode_request

MAX_REQUEST_BYTES = 4096  # a first frame, read before anybody is known: hotkey, binding and a payload of some bytes

VerifyPeer = Callable[[bytes, bytes, bytes], bool]


class PeerBook:
    """The current roster, and requests that say who we are. One per node."""

    def __init__(
        self,
        transport: Transport,
        netuid: int,
        public_key: bytes,
        sign_as_peer: Callable[[bytes], bytes],
        verify_peer: VerifyPeer,
    ) -> None:
        self.transport = transport
        self._netuid, self.public_key = netuid, public_key
        self._sign, self._verify = sign_as_peer, verify_peer
        self._binding = b""
        self._roster: Roster | None = None
        self._proven: set[tuple[bytes, int, bytes]] = set()
        self._budget: Budget | None = None
        self.uplink = Uplink()

    def limit(self, budget: Budget, leisure_bytes_per_s: float) -> None:
        """From now on every peer of the roster has `budget` here, and everybody else shares one. What all of them fetch
        at leisure takes so much of our line at most."""
        self._budget = budget
        self.uplink.limit(leisure_bytes_per_s)
        self._admit()

    def _admit(self) -> None:
        if self._budget is not None:
            keys = {n.commitment.peer_key for n in self.neurons if n.commitment is not None}
            self.transport.admit(keys, self._budget)

    def update(self, roster: Roster) -> None:
        """Take a newer roster; learns every published address, and who has no open port."""
        self._roster = roster
        said = [n.commitment for n in roster.neurons if n.commitment is not None]
        self.transport.traffic.kinds = {c.peer_key: c.role.name.lower() for c in said}
        self._admit()
        for peer_key, addresses in claimed_addresses(roster.neurons, self._has_proven).items():
            self.transport.learn(peer_key, *addresses)
        ourselves = roster.by_public_key(self.public_key)
        if ourselves is not None:
            self._binding = self._sign(binding_message(self._netuid, self.public_key, ourselves.registered_block))

    def _has_proven(self, neuron: Neuron) -> bool:
        """Has the peer key that it names signed its registration, on a stream to us?"""
        claim = None if neuron.commitment is None else neuron.commitment.peer_key
        return claim is not None and (neuron.public_key, neuron.registered_block, claim) in self._proven

    def is_anothers(self, peer_key: bytes, public_key: bytes) -> bool:
        """Has another hotkey of the roster proven that the peer key is its own, and this one not?"""
        proven = {n.public_key for n in self.neurons if self._has_proven(n) and n.commitment is not None
                  and n.commitment.peer_key == peer_key}  # fmt: skip
        return bool(proven) and public_key not in proven

    def validators(self, manifest: RunManifest) -> tuple[Neuron, ...]:
        """Who validates the run, by the newest roster."""
        block = self._roster.block.number if self._roster else 0
        return tuple(n for n in self.neurons if validates(n, manifest, block))

    def knows(self, peer_key: bytes) -> bool:
        """Does the newest roster name it? Everybody else is a stranger."""
        return any(n.commitment is not None and n.commitment.peer_key == peer_key for n in self.neurons)

    def by_public_key(self, public_key: bytes) -> Neuron | None:
        """By the newest roster."""
        return self._roster.by_public_key(public_key) if self._roster else None

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        return self._roster.neurons if self._roster else ()

    async def open(self, peer_key: bytes, method: str, payload: bytes, timeout_s: float) -> Stream:
        """Open a stream and say who asks for what."""
        stream = await self.transport.open(peer_key, method, timeout_s)
        try:
            await stream.write(encode_request(self.public_key, self._binding, payload), timeout_s)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def accept(self, stream: Stream, timeout_s: float) -> tuple[Neuron, bytes]:
        """Read the first frame of a stream; the neuron behind it and its payload. Raises PeerFault otherwise."""
        public_key, binding, payload = decode_request(await stream.read(MAX_REQUEST_BYTES, timeout_s))
        neuron = self.by_public_key(public_key)
        if neuron is None or neuron.commitment is None:
            raise PeerFault(f"hotkey {public_key.hex()[:12]} is not on the roster")
        if neuron.commitment.peer_key != stream.peer_key:
            raise PeerFault(f"uid {neuron.uid} names another peer key on chain")
        proof = (public_key, neuron.registered_block, stream.peer_key)
        if proof not in self._proven:
            message = binding_message(self._netuid, public_key, neuron.registered_block)
            if not self._verify(stream.peer_key, message, binding):
                raise PeerFault(f"uid {neuron.uid}: the peer key did not sign this registration")
            if len(self._proven) > 4096:
                self._proven.clear()
            self._proven.add(proof)
        return neuron, payload


def claimed_addresses(
    neurons: Iterable[Neuron], proven: Callable[[Neuron], bool] = lambda neuron: False
) -> dict[bytes, tuple[tuple[str, int], ...]]:
    """By peer key, where it may listen: best first, none where nobody says so.

    Anybody can name somebody else's peer key, with a false address or none: what is not proven stands beside other
    claims and takes the place of none. Once one is proven, the others are nothing.
    """
    found: dict[bytes, dict[tuple[str, int], None]] = {}
    sure: set[bytes] = set()
    for neuron in sorted(neurons, key=lambda n: (not proven(n), -n.stake, n.registered_block)):
        if neuron.commitment is None:
            continue
        peer_key, address = neuron.commitment.peer_key, neuron.reachable_at
        addresses = found.setdefault(peer_key, {})
        if proven(neuron):
            sure.add(peer_key)
        if address is not None and (proven(neuron) or peer_key not in sure):
            addresses[address] = None
    return {peer_key: tuple(addresses) for peer_key, addresses in found.items()}
