"""Who is at the other end: peer keys bound to hotkeys, both ways (protocol section 2).

The chain says which peer key a hotkey names; the first frame of every stream carries the peer key's signature over
that registration. A stolen claim therefore binds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from distributed_training.errors import PeerFault
from distributed_training.network.base import Stream, Transport
from distributed_training.network.budgets import Budget
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
        self._netuid, self._public_key = netuid, public_key
        self._sign, self._verify = sign_as_peer, verify_peer
        self._binding = b""
        self._roster: Roster | None = None
        self._proven: set[tuple[bytes, int, bytes]] = set()
        self._budget: Budget | None = None

    def limit(self, budget: Budget) -> None:
        """From now on every peer of the roster has `budget` here, and everybody else shares one."""
        self._budget = budget
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
        for neuron in sorted(roster.neurons, key=self._credibility):
            commitment, address = neuron.commitment, neuron.reachable_at
            if commitment is not None and (address is not None or address != neuron.address):
                self.transport.learn(commitment.peer_key, address)
            if neuron.public_key == self._public_key:
                self._binding = self._sign(binding_message(self._netuid, self._public_key, neuron.registered_block))

    def _credibility(self, neuron: Neuron) -> tuple[bool, float, int]:
        """Anybody can name somebody else's peer key, with a false address: the best claim is learnt last, and stays."""
        claim = None if neuron.commitment is None else neuron.commitment.peer_key
        proven = claim is not None and (neuron.public_key, neuron.registered_block, claim) in self._proven
        return proven, neuron.stake, -neuron.registered_block

    def validators(self, manifest: RunManifest) -> tuple[Neuron, ...]:
        """Who validates the run, by the newest roster."""
        block = self._roster.block.number if self._roster else 0
        return tuple(n for n in self.neurons if validates(n, manifest, block))

    def knows(self, peer_key: bytes) -> bool:
        """Does the newest roster name it? Everybody else is a stranger."""
        return any(n.commitment is not None and n.commitment.peer_key == peer_key for n in self.neurons)

    @property
    def neurons(self) -> tuple[Neuron, ...]:
        return self._roster.neurons if self._roster else ()

    async def open(self, peer_key: bytes, method: str, payload: bytes, timeout_s: float) -> Stream:
        """Open a stream and say who asks for what."""
        stream = await self.transport.open(peer_key, method, timeout_s)
        try:
            await stream.write(encode_request(self._public_key, self._binding, payload), timeout_s)
        except BaseException:
            await stream.close()
            raise
        return stream

    async def accept(self, stream: Stream, timeout_s: float) -> tuple[Neuron, bytes]:
        """Read the first frame of a stream; the neuron behind it and its payload. Raises PeerFault otherwise."""
        public_key, binding, payload = decode_request(await stream.read(MAX_REQUEST_BYTES, timeout_s))
        neuron = self._roster.by_public_key(public_key) if self._roster else None
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
