"""Plain values to SCALE bytes, by the types of a runtime's metadata. What is missing in a value is zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bittensor._transport.codec import ss58_decode

SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "u128": 16, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "i128": 16}


def compact(value: int) -> bytes:
    if value < 1 << 30:
        mode = 0 if value < 1 << 6 else 1 if value < 1 << 14 else 2
        return (value << 2 | mode).to_bytes(1 << mode, "little")
    body = value.to_bytes((value.bit_length() + 7) // 8, "little")
    return bytes([(len(body) - 4) << 2 | 3]) + body


def read_compact(data: bytes) -> tuple[int, int]:
    """(value, bytes read)."""
    mode = data[0] & 3
    if mode == 3:
        size = (data[0] >> 2) + 4
        return int.from_bytes(data[1 : 1 + size], "little"), 1 + size
    size = 1 << mode
    return int.from_bytes(data[:size], "little") >> 2, size


class Encoder:
    """Encodes by type number, or by the codec's name of one ("scale_info::7")."""

    def __init__(self, types: Mapping[int, Mapping[str, Any]]) -> None:
        self._types = types

    def encode(self, type_id: int | str, value: Any) -> bytes:
        number = int(type_id.removeprefix("scale_info::")) if isinstance(type_id, str) else type_id
        ((kind, form),) = self._types[number]["def"].items()
        return getattr(self, f"_{kind}")(form, value)

    def _primitive(self, form: str, value: Any) -> bytes:
        if form == "bool":
            return bytes([bool(value)])
        if form == "str":
            return compact(len(value or "")) + (value or "").encode()
        return int(value or 0).to_bytes(SIZES[form], "little", signed=form[0] == "i")

    def _compact(self, form: Mapping[str, Any], value: Any) -> bytes:
        return compact(int(value or 0))

    def _composite(self, form: Mapping[str, Any], value: Any) -> bytes:
        fields = form.get("fields", ())
        if len(fields) == 1 and "name" not in fields[0]:
            return self.encode(fields[0]["type"], value)
        if len(fields) == 1 and not isinstance(value, Mapping):
            return self.encode(fields[0]["type"], value)
        return self._fields(fields, value)

    def _fields(self, fields: Any, value: Any) -> bytes:
        given = value or {}
        named = isinstance(given, Mapping)
        return b"".join(
            self.encode(f["type"], given.get(f.get("name")) if named else given[i]) for i, f in enumerate(fields)
        )

    def _tuple(self, form: Any, value: Any) -> bytes:
        return b"".join(self.encode(inner, value[i] if value else None) for i, inner in enumerate(form))

    def _sequence(self, form: Mapping[str, Any], value: Any) -> bytes:
        values = _bytes(value) if isinstance(value, str) else value or []
        return compact(len(values)) + b"".join(self.encode(form["type"], each) for each in values)

    def _array(self, form: Mapping[str, Any], value: Any) -> bytes:
        values = _bytes(value) if isinstance(value, str) else value or [None] * form["len"]
        if len(values) != form["len"]:
            raise ValueError(f"expected {form['len']} values, got {len(values)}")
        return b"".join(self.encode(form["type"], each) for each in values)

    def _variant(self, form: Mapping[str, Any], value: Any) -> bytes:
        variants = {variant["name"]: variant for variant in form["variants"]}
        if set(variants) == {"None", "Some"}:
            return b"\0" if value is None else b"\1" + self._fields(variants["Some"]["fields"], [value])
        if value is None:
            chosen, inner = min(form["variants"], key=lambda v: v["index"]), None
        elif isinstance(value, str):
            chosen, inner = variants[value], None
        else:
            ((name, inner),) = value.items()
            chosen = variants[name]
        fields = chosen.get("fields", ())
        single = len(fields) == 1 and not (isinstance(inner, Mapping) and "name" in fields[0])
        return bytes([chosen["index"]]) + self._fields(fields, [inner] if single else inner)


def _bytes(value: str) -> bytes:
    """Bytes of hex text or of an address."""
    return bytes.fromhex(value[2:] if value.startswith("0x") else ss58_decode(value))
