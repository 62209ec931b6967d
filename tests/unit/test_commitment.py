from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from samples import commitment

from distributed_training.protocol.commitments import NO_ROUND, decode_commitment, encode_commitment
from distributed_training.protocol.types import (
    Commitment,
    Field,
    Role,
)

digests = st.binary(min_size=32, max_size=32)


@st.composite
def commitments(draw: st.DrawFn) -> Commitment:
    rounds = st.integers(0, NO_ROUND - 1)
    first = draw(st.none() | st.tuples(rounds, digests))
    second = draw(st.none() | st.tuples(rounds, digests)) if first else None
    return Commitment(
        draw(st.sampled_from(Role)),
        draw(st.booleans()),
        draw(digests),
        draw(st.binary(min_size=8, max_size=8)),
        *(first or (None, None)),
        *(second or (None, None)),
    )


@settings(max_examples=100)
@given(commitments())
def test_commitment_round_trip(said: Commitment) -> None:
    fields = encode_commitment(said)
    assert decode_commitment(fields) == said
    assert len(fields[0].data) == 50 and len(fields) <= 3  # the chain's quota counts these bytes


any_field = st.builds(Field, st.sampled_from(["Raw", "Sha256", "Other"]), st.binary(max_size=64) | digests)


@settings(max_examples=100)
@given(st.lists(any_field, max_size=4))
@example([])
def test_foreign_commitments_are_none_or_canonical(fields: list[Field]) -> None:
    said = decode_commitment(fields)
    assert said is None or list(encode_commitment(said)) == fields


@settings(max_examples=100)
@given(st.sampled_from(Role), st.integers(0, 49), st.binary(min_size=1, max_size=1), st.data())
def test_mutated_commitments_are_none_or_canonical(role: Role, at: int, byte: bytes, data: st.DataObject) -> None:
    head, *rest = encode_commitment(commitment(role=role))
    count = data.draw(st.integers(0, 2))
    fields = [Field("Raw", head.data[:at] + byte + head.data[at + 1 :]), *rest[:count]]
    said = decode_commitment(fields)
    assert said is None or list(encode_commitment(said)) == fields


@pytest.mark.parametrize("role", Role)
def test_malformed_commitments_are_absent(role: Role) -> None:
    head, first, second = encode_commitment(commitment(role=role))
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
        [Field("Raw", b"\x01" + head.data[1:]), first, second],
        [Field("Raw", version + bytes([flags | 8]) + head.data[2:]), first, second],
        [Field("Raw", version + bytes([3]) + head.data[2:]), first, second],
        [head, Field("Raw", first.data), second],
        [head, Field("Sha256", first.data[:-1]), second],
        [head, first, Field(other, second.data)],
        [head, first, Field(second.kind, second.data + b"\0")],
        [Field("Raw", head.data[:-8] + b"\xff" * 4 + head.data[-4:]), second],  # a second field without the first
    ]
    assert decode_commitment([head, first, second]) == commitment(role=role)
    assert [decode_commitment(fields) for fields in lies] == [None] * len(lies)


@pytest.mark.parametrize(
    "change", [{"first": None}, {"second_round": None}, {"first": None, "first_round": None}, {"first_round": None}]
)
def test_half_a_commitment_cannot_be_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a commitment"):
        encode_commitment(dataclasses.replace(commitment(), **change))


@pytest.mark.parametrize("place", ["hub:o/r", "hub:" + "o" * 36 + "/" + "r" * 37])
def test_an_owner_may_say_where_the_files_of_its_run_lie(place: str) -> None:
    said = commitment(role=Role.OWNER, place=place)
    fields = encode_commitment(said)
    assert decode_commitment(fields) == said and len(fields[0].data) <= 128


@pytest.mark.parametrize("place", ["hub:o", "hub:../r", "https://x/y", "hub:o/" + "r" * 38, "hub:o/r\n", "hub:\xfc/r"])
def test_a_place_of_another_form_or_of_another_role_is_neither_written_nor_read(place: str) -> None:
    with pytest.raises(ValueError, match="place"):
        encode_commitment(commitment(role=Role.OWNER, place=place))
    with pytest.raises(ValueError, match="place"):
        encode_commitment(commitment(role=Role.MINER, place="hub:o/r"))
    for role, text in ((Role.OWNER, place), (Role.VALIDATOR, "hub:o/r")):
        head, *rest = encode_commitment(commitment(role=role))
        assert decode_commitment([Field("Raw", head.data + text.encode("latin-1")), *rest]) is None
