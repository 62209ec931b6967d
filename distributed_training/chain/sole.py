"""One hotkey, one process: what the chain says of our hotkey, against what this process wrote.

Two processes of one hotkey overwrite each other's commitments, and then peers believe neither. The last one to write
goes on, the other stops at its next look, before it writes anything more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from distributed_training.chain.base import Chain, Signer
from distributed_training.errors import HotkeyTaken, NotRegisteredError
from distributed_training.protocol.commitments import decode_commitment
from distributed_training.protocol.types import Field, Neuron, Roster

KEPT = 16  # newest commitments of ours: a write that nobody answered may appear later


class SoleChain:
    """`chain.base.Chain` that also raises HotkeyTaken and NotRegisteredError, from `roster` only. Make it with `begin`.

    A former process of ours may have written just before it ended: for `grace_blocks` everything that names our own
    peer key is taken for such.
    """

    def __init__(self, chain: Chain, roster: Roster, me: Neuron, peer_key: bytes, grace_blocks: int) -> None:
        self._chain, self._me, self._peer_key = chain, me, peer_key
        self.head, self.block_hash, self.params = chain.head, chain.block_hash, chain.params
        self.weights, self.set_weights = chain.weights, chain.set_weights
        self._since = roster.block.number  # what was before our newest write, or before we began, is history
        self._grace_until = self._since + grace_blocks
        self._commitments = deque([me.commitment], maxlen=KEPT)
        self._addresses = {me.address}
        # Until we have said on chain who we are, it is the other one's.
        self._ours = me.commitment is not None and me.commitment.peer_key == peer_key

    @classmethod
    async def begin(cls, chain: Chain, signer: Signer, peer_key: bytes, grace_blocks: int) -> SoleChain:
        """Raises NotRegisteredError, ChainFault."""
        roster = await chain.roster((await chain.head()).number)
        me = roster.by_public_key(signer.public_key)
        if me is None:
            raise NotRegisteredError(f"hotkey {signer.hotkey} is not registered (block {roster.block.number})")
        return cls(chain, roster, me, peer_key, grace_blocks)

    async def roster(self, block: int) -> Roster:
        roster = await self._chain.roster(block)
        if block >= self._since:
            self._check(roster)
        return roster

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        self._commitments.append(decode_commitment(fields))
        block = await self._chain.commit(fields, until)
        self._ours, self._since = True, max(self._since, block)
        return block

    async def serve(self, ip: str, port: int) -> None:
        self._addresses.add((ip, port))
        await self._chain.serve(ip, port)

    def _check(self, roster: Roster) -> None:
        me = roster.by_public_key(self._me.public_key)
        if me is None or (me.uid, me.registered_block) != (self._me.uid, self._me.registered_block):
            raise NotRegisteredError(_lost(self._me, me, roster.block.number))
        if not self._ours or not (self._written_since(me) or me.address not in (None, *self._addresses)):
            return
        own_key = me.commitment is None or me.commitment.peer_key == self._peer_key
        if own_key and roster.block.number <= self._grace_until:
            self._commitments.append(me.commitment)
            self._addresses.add(me.address)
            return
        raise HotkeyTaken(_taken(me, roster.block.number, own_key))

    def _written_since(self, me: Neuron) -> bool:
        """Does the chain show a commitment of another process that is newer than ours? An older one shows again when
        a reorganisation took back what we wrote over it."""
        written = self._since if me.commitment_block is None else me.commitment_block
        return me.commitment not in (None, *self._commitments) and written >= self._since


def _taken(me: Neuron, block: int, own_key: bool) -> str:
    key = "" if me.commitment is None else me.commitment.peer_key.hex()[:12]
    said = "this node's own peer key, as from a copy of its folder" if own_key else f"peer key {key}"
    address = "no address" if me.address is None else f"address {me.address[0]}:{me.address[1]}"
    return (
        f"another process runs hotkey {me.hotkey} (uid {me.uid}) since block {me.commitment_block or block}: it "
        f"announced {said} and {address}; this process stops. One process per hotkey: end that one before you start "
        "this one again"
    )


def _lost(former: Neuron, now: Neuron | None, block: int) -> str:
    if now is None:
        return (
            f"hotkey {former.hotkey} is no longer registered: by block {block} uid {former.uid} was given to another "
            "one; register it again, then start this node again"
        )
    return (
        f"hotkey {former.hotkey} was registered again in block {now.registered_block} as uid {now.uid} (before: "
        f"{former.uid}); start this node again"
    )
