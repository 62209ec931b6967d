"""As much of Thrift's compact protocol as parquet's footers and page headers need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TRUE, _FALSE, I32, I64, _DOUBLE, BINARY, LIST, _SET, _MAP, STRUCT = 1, 2, 5, 6, 7, 8, 9, 10, 11, 12
_WHOLE = (4, I32, I64)
_MAX_DEPTH = 8
_MAX_FIELDS = 1_000  # in one header with all that is inside; the largest of parquet's has about 30

Field = tuple[int, int, bytes]  # number, type, encoded value


def integer(value: int) -> bytes:
    """An i32 or i64: zigzag, then a varint."""
    return _varint((value << 1) ^ (value >> 63))


def binary(value: bytes) -> bytes:
    return _varint(len(value)) + value


def struct(fields: Iterable[Field]) -> bytes:
    """Fields in ascending order of their numbers, at most 15 apart."""
    parts, last = [], 0
    for number, kind, value in fields:
        parts += [bytes([(number - last) << 4 | kind]), value]
        last = number
    return b"".join(parts) + b"\0"


def listed(kind: int, values: list[bytes]) -> bytes:
    """At most 14 values of one type."""
    return bytes([len(values) << 4 | kind]) + b"".join(values)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Reader:
    """Reads structs from foreign bytes. Every value takes at least one byte, so time follows from `data`; fields
    are counted, so memory stays small."""

    def __init__(self, data: memoryview, at: int = 0) -> None:
        self._data, self.at = data, at
        self._fields = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field number -> integer, or struct as another dict; values of other types are passed over as None.
        Raises ValueError for what is none."""
        if depth > _MAX_DEPTH:
            raise ValueError("a Thrift struct that is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        if depth == 0:
            self._fields = 0
        while head := self._byte():
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise ValueError(f"a Thrift struct of more than {_MAX_FIELDS} fields")
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[number] = None if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _WHOLE:
            return self._integer()
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in (_TRUE, _FALSE, 3):  # in a list a truth value takes a byte
            return self._skip(1)
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == BINARY:
            return self._skip(self._unsigned())
        if kind in (LIST, _SET):
            return self._list(depth + 1)
        raise ValueError(f"a Thrift value of type {kind}, which parquet does not use here")

    def _list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._unsigned()
        if depth > _MAX_DEPTH:
            raise ValueError("a Thrift list that is nested too deeply")
        for _ in range(count):
            self._value(head & 15, depth)

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise ValueError("a Thrift struct that is cut off")

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a Thrift number that is too long")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
