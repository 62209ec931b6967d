"""The chain seam: what a node reads and writes. Eight methods, one implementation (client.py) over the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed_training.protocol.types import Field, Roster, SubnetParams


@dataclass(frozen=True, slots=True)
class Head:
    number: int
    finalized: int


class Signer(Protocol):
    """A hotkey that can sign. `sign` returns 64 bytes over exactly the bytes given."""

    @property
    def hotkey(self) -> str: ...

    @property
    def public_key(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...


class Verify(Protocol):
    """True if `signature` (64 bytes) of `message` was made by the sr25519 `public_key`. Never raises."""

    def __call__(self, public_key: bytes, message: bytes, signature: bytes) -> bool: ...


class Chain(Protocol):
    """Reads are of past blocks, which never change; all are idempotent and may be retried and cancelled.

    Writes return when included in a block and raise ChainRefused with the SDK's code otherwise. A cancelled write, or
    one that raised ChainUnreachable, may or may not have happened: look before you repeat it. Everything raises
    ChainUnreachable when nobody answers, StatePruned for a block whose state the node has dropped, ChainFault for an
    answer that makes no sense, ChainReplaced when it is another chain that answers.
    """

    async def head(self) -> Head:
        """The newest block seen, and the newest final one; neither ever falls."""
        ...

    async def block_hash(self, number: int) -> bytes:
        """32 bytes. Asking for a future block raises ChainFault."""
        ...

    async def roster(self, block: int) -> Roster:
        """All neurons with their commitments as of `block` (pinned read); a commitment that does not decode is None."""
        ...

    async def params(self) -> SubnetParams: ...

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        """Validator uid -> {uid: share}, rows normalised to 1, as of `block`."""
        ...

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        """Replace our commitment; returns the block it was included in. After block `until` it is worth nothing."""
        ...

    async def serve(self, ip: str, port: int) -> None:
        """Publish our address; does nothing when the chain already has it."""
        ...

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        """Publish weights by uid (any positive scale); returns the block it was included in."""
        ...
