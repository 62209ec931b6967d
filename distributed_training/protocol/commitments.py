"""What a hotkey says on chain (protocol section 2): a record <-> the fields of its one commitment.

Frozen by golden vectors. The decoder takes foreign bytes: whatever the encoder would not write is absent.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from distributed_training.protocol.types import Commitment, Field, Role

NO_ROUND = 0xFFFFFFFF
_COMMITMENT = struct.Struct("<BB32s8sII")
_COMMITMENT_VERSION = 2
_PLACE = re.compile(r"hub:[A-Za-z0-9][\w.-]{0,35}/[A-Za-z0-9][\w.-]{0,36}", re.ASCII)  # 128 bytes hold all of it


def place_of(text: str) -> str:
    """`text` if a commitment can hold it as a place, else nothing."""
    return text if _PLACE.fullmatch(text) else ""


def encode_commitment(commitment: Commitment) -> tuple[Field, ...]:
    """One Raw field of 50 bytes and the place, then `first` and `second`. `second` without `first` cannot be said."""
    c = commitment
    if (c.first is None) != (c.first_round is None) or (c.second is None) != (c.second_round is None):
        raise ValueError("a commitment's round and its field come together")
    if c.first is None and c.second is not None:
        raise ValueError("a commitment cannot hold a second field without the first")
    if c.place and (c.role is not Role.OWNER or _PLACE.fullmatch(c.place) is None):
        raise ValueError(f"an owner's commitment may hold a short place, hub:ORG/NAME, not {c.place!r}")
    head = _COMMITMENT.pack(
        _COMMITMENT_VERSION,
        int(c.role) | (4 if c.reduces else 0),
        c.peer_key,
        c.run,
        NO_ROUND if c.first_round is None else c.first_round,
        NO_ROUND if c.second_round is None else c.second_round,
    )
    fields = [Field("Raw", head + c.place.encode())]
    if c.first is not None:
        fields.append(Field("Sha256", c.first))
    if c.second is not None:
        fields.append(Field(_second_kind(c.role), c.second))
    return tuple(fields)


def decode_commitment(fields: Sequence[Field]) -> Commitment | None:
    """Strict: anything that `encode_commitment` would not write is None. Never raises on foreign bytes."""
    if not 1 <= len(fields) <= 3 or fields[0].kind != "Raw" or len(fields[0].data) < _COMMITMENT.size:
        return None
    head, place = fields[0].data[: _COMMITMENT.size], fields[0].data[_COMMITMENT.size :].decode("latin-1")
    version, flags, peer_key, run, first_round, second_round = _COMMITMENT.unpack(head)
    if version != _COMMITMENT_VERSION or flags & ~7 or flags & 3 not in set(Role):
        return None
    rest = fields[1:]
    expected = (first_round != NO_ROUND) + (second_round != NO_ROUND)
    if len(rest) != expected or (first_round == NO_ROUND and second_round != NO_ROUND):
        return None
    role = Role(flags & 3)
    if place and (role is not Role.OWNER or _PLACE.fullmatch(place) is None):
        return None
    kinds = ("Sha256", _second_kind(role))
    if any(field.kind != kind or len(field.data) != 32 for field, kind in zip(rest, kinds, strict=False)):
        return None
    return Commitment(
        role=role,
        reduces=bool(flags & 4),
        peer_key=peer_key,
        run=run,
        first_round=None if first_round == NO_ROUND else first_round,
        first=rest[0].data if rest else None,
        second_round=None if second_round == NO_ROUND else second_round,
        second=rest[1].data if len(rest) > 1 else None,
        place=place,
    )


def _second_kind(role: Role) -> str:
    return "Raw" if role is Role.VALIDATOR else "Sha256"
