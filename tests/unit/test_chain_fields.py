"""What strangers wrote on chain, as the SDK hands it over, never raises and never turns into something else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed_training.chain.fields import encode_field, parse_address, parse_fields
from distributed_training.protocol.types import Field

FIELDS = st.one_of(
    st.builds(Field, st.just("Raw"), st.binary(max_size=128)),
    st.builds(Field, st.just("Sha256"), st.binary(min_size=32, max_size=32)),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=8,
)


@given(st.lists(FIELDS, max_size=3))
def test_fields_survive_the_chain(fields: list[Field]) -> None:
    assert parse_fields([encode_field(field) for field in fields]) == tuple(fields)


@given(st.lists(st.one_of(JUNK, st.dictionaries(st.sampled_from(["Raw4", "Sha256", "RawX", "Raw"]), JUNK)), max_size=3))
def test_junk_is_absent_or_has_the_length_it_says(stored: list[Any]) -> None:
    fields = parse_fields(stored)
    assert fields is None or all(len(f.data) == (32 if f.kind == "Sha256" else 4) for f in fields)


@pytest.mark.parametrize(
    ("entry", "data"),
    [({"Raw0": []}, b""), ({"Raw2": [1, 255]}, b"\x01\xff"), ({"Raw2": b"ab"}, b"ab"), ({"Raw2": "0x6162"}, b"ab")],
)
def test_every_shape_the_sdk_uses_is_read(entry: dict[str, Any], data: bytes) -> None:
    assert parse_fields([entry]) == (Field("Raw", data),)


@pytest.mark.parametrize(
    "entry",
    ["ResetBondsFlag", {"BigRaw": "hello"}, {"Raw2": "ab"}, {"Raw2": "0x61"}, {"Raw1": [256]}, {"Sha256": "0x00"}],
)
def test_other_kinds_make_the_whole_commitment_absent(entry: Any) -> None:
    assert parse_fields([{"Raw1": "0x00"}, entry]) is None


@pytest.mark.parametrize(
    ("axon", "address"),
    [
        ("127.0.0.2:9000", ("127.0.0.2", 9000)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        (None, None),
        ("1.2.3.4:0", None),
        ("1.2.3.4:99999", None),
        ("nowhere", None),
        ("host:80", None),
    ],
)
def test_addresses(axon: str | None, address: tuple[str, int] | None) -> None:
    assert parse_address(axon) == address
