from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import commitment

from distributed_training.protocol import wire
from distributed_training.protocol.types import (
    Commitment,
    Field,
    Role,
)

digests = st.binary(min_size=32, max_size=32)


@st.composite
def commitments(draw: st.DrawFn) -> Commitment:
    rounds = st.integers(0, wire.NO_ROUND - 1)
    first = draw(st.none() | st.tuples(rounds, digests))
    second = draw(st.none() | st.tuples(rounds, digests)) if first else None
    return Commitment(
        draw(st.sampled_from(Role)),
        draw(st.booleans()),
        draw(digests),
        *(first or (None, None)),
        *(second or (None, None)),
    )


@settings(max_examples=100)
@given(commitments())
def test_commitment_round_trip(said: Commitment) -> None:
    fields = wire.encode_commitment(said)
    assert wire.decode_commitment(fields) == said
    assert len(fields[0].data) == 42 and len(fields) <= 3  # the chain's quota counts these bytes


any_field = st.builds(Field, st.sampled_from(["Raw", "Sha256", "Other"]), st.binary(max_size=48) | digests)


@settings(max_examples=100)
@given(st.lists(any_field, max_size=4))
@example([])
def test_foreign_commitments_are_none_or_canonical(fields: list[Field]) -> None:
    said = wire.decode_commitment(fields)
    assert said is None or list(wire.encode_commitment(said)) == fields


@settings(max_examples=100)
@given(st.sampled_from(Role), st.integers(0, 41), st.binary(min_size=1, max_size=1), st.data())
def test_mutated_commitments_are_none_or_canonical(role: Role, at: int, byte: bytes, data: st.DataObject) -> None:
    head, *rest = wire.encode_commitment(commitment(role=role))
    count = data.draw(st.integers(0, 2))
    fields = [Field("Raw", head.data[:at] + byte + head.data[at + 1 :]), *rest[:count]]
    said = wire.decode_commitment(fields)
    assert said is None or list(wire.encode_commitment(said)) == fields


@pytest.mark.parametrize("role", Role)
def test_malformed_commitments_are_absent(role: Role) -> None:
    head, first, second = wire.encode_commitment(commitment(role=role))
    other = "Sha256" if role is Role.VALIDATOR else "Raw"
    version, flags = head.data[:1], head.data[1]
    lies = [
        [],
        [head],
        [head, first],
        [head, first, second, second],
        [Field("Sha256", head.data), first, second],
        [Field("Raw", head.data + b"\0"), first, second],
        [Field("Raw", head.data[:-1]), first, second],
        [Field("Raw", b"\x02" + head.data[1:]), first, second],
        [Field("Raw", version + bytes([flags | 8]) + head.data[2:]), first, second],
        [Field("Raw", version + bytes([3]) + head.data[2:]), first, second],
        [head, Field("Raw", first.data), second],
        [head, Field("Sha256", first.data[:-1]), second],
        [head, first, Field(other, second.data)],
        [head, first, Field(second.kind, second.data + b"\0")],
        [Field("Raw", head.data[:-8] + b"\xff" * 4 + head.data[-4:]), second],  # a second field without the first
    ]
    assert wire.decode_commitment([head, first, second]) == commitment(role=role)
    assert [wire.decode_commitment(fields) for fields in lies] == [None] * len(lies)


@pytest.mark.parametrize(
    "change", [{"first": None}, {"second_round": None}, {"first": None, "first_round": None}, {"first_round": None}]
)
def test_half_a_commitment_cannot_be_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a commitment"):
        wire.encode_commitment(dataclasses.replace(commitment(), **change))
