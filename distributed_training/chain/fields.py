"""The fields of a commitment and the address of an axon, to and from what the SDK writes and reads."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any

from distributed_training.errors import ChainRefused
from distributed_training.protocol.types import Field

MAX_FIELDS = 3
MAX_RAW_BYTES = 128
RAW_KIND = re.compile(r"Raw(0|[1-9][0-9]{0,2})")
PORT = re.compile(r"[1-9][0-9]{0,4}")
HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


def check_fields(fields: Sequence[Field]) -> None:
    """Sizes the chain's codec can encode; it would refuse others without saying why."""
    sizes = all(len(f.data) == 32 if f.kind == "Sha256" else len(f.data) <= MAX_RAW_BYTES for f in fields)
    if len(fields) > MAX_FIELDS or not sizes or any(f.kind not in ("Raw", "Sha256") for f in fields):
        raise ChainRefused(
            f"a commitment has at most {MAX_FIELDS} fields: Raw of up to {MAX_RAW_BYTES} bytes or Sha256 of 32",
            "invalid_argument",
        )


def encode_field(field: Field) -> dict[str, str]:
    kind = f"Raw{len(field.data)}" if field.kind == "Raw" else field.kind
    return {kind: "0x" + field.data.hex()}


def parse_fields(stored: Sequence[Any]) -> tuple[Field, ...] | None:
    """On-chain commitment fields as decoded by the SDK; None if one is of a kind we do not write."""
    fields = [parse_field(entry) for entry in stored]
    return None if None in fields else tuple(field for field in fields if field is not None)


def parse_field(entry: Any) -> Field | None:
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    ((kind, value),) = entry.items()
    raw = RAW_KIND.fullmatch(str(kind))
    size = 32 if kind == "Sha256" else int(raw[1]) if raw else None
    data = None if size is None or size > MAX_RAW_BYTES else payload_bytes(value, size)
    if data is None:
        return None
    return Field("Sha256" if kind == "Sha256" else "Raw", data)


def payload_bytes(value: Any, size: int) -> bytes | None:
    """`size` bytes from hex text, bytes or a list of byte values; None for anything else. Bounded before it is read."""
    if isinstance(value, str):
        return bytes.fromhex(value[2:]) if len(value) == 2 + 2 * size and HEX.fullmatch(value) else None
    if not isinstance(value, bytes | bytearray | list | tuple) or len(value) != size:
        return None
    try:
        return bytes(value)
    except (ValueError, TypeError):
        return None


def parse_address(axon: str | None) -> tuple[str, int] | None:
    """The SDK's "ip:port" or "[ip]:port" -> (ip, port); None when nothing is served or it makes no sense."""
    if axon is None:
        return None
    host, _, port = axon.rpartition(":")
    if PORT.fullmatch(port) is None or "%" in host:  # a scope names an interface of somebody's machine
        return None
    try:
        ip, number = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        return None
    return (ip, number) if number < 65536 else None
