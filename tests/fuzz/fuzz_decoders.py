"""Every decoder of foreign bytes as a fuzz target: one encoding per value, bounded memory, no bad number unnoticed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import samples
from fuzz_engine import ACCEPTED, Target
from fuzz_pack import cut_frames, cut_object, pack_frames, pack_object
from tiny_training import GPT2
from tiny_training import manifest as tiny_manifest

from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.contribution import split_wire
from distributed_training.chain.fields import encode_field, parse_address, parse_fields
from distributed_training.errors import ConfigError, WireError
from distributed_training.network.hints import _DOMAIN as HINT_DOMAIN
from distributed_training.network.hints import HINT_LIFETIME_S, decode_hint, encode_hint
from distributed_training.network.identity import PeerIdentity
from distributed_training.protocol.commitments import decode_commitment, encode_commitment
from distributed_training.protocol.manifest import parse_manifest
from distributed_training.protocol.rules.membership import decode_slice_map, encode_slice_map
from distributed_training.protocol.types import Carry, Field, Role
from distributed_training.protocol.wire import (
    decode_accusation,
    decode_carry,
    decode_log,
    decode_output,
    decode_request,
    decode_signed,
    decode_work,
    encode_accusation,
    encode_carry,
    encode_log,
    encode_output,
    encode_request,
    encode_signed,
    encode_step,
    encode_work,
)
from distributed_training.snapshots.statefile import decode_state, encode_state
from distributed_training.training.outer import RunState, state_root

LOG = {"max_pages": 4, "max_steps": 8, "batch_size": 2, "groups": 2, "sketch_size": 3}
SENDERS = samples.group()
LAYOUT = SENDERS.plan.layout
NOW = 1_700_000_000.0


def numbers(value: Any) -> list[float]:
    """All floats in a record."""
    if isinstance(value, float):
        return [value]
    if isinstance(value, tuple | list):
        return [n for part in value for n in numbers(part)]
    if is_dataclass(value):
        return [n for f in fields(value) for n in numbers(getattr(value, f.name))]
    return []


def canonical(
    decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], positive: Callable[[Any], Any] = lambda _: ()
) -> Callable[[bytes], str]:
    """What is accepted is finite and has exactly one encoding; the numbers of `positive` carry no minus sign."""

    def check(data: bytes) -> str:
        value = decode(data)
        assert all(math.isfinite(n) for n in numbers(value)), "a non-finite number was accepted"
        assert all(math.copysign(1, n) > 0 for n in numbers(positive(value))), "a negative number was accepted"
        assert encode(value) == data, "two encodings of one value were accepted"
        return ACCEPTED

    return check


def _normal(value: Any) -> None:
    assert all(n == 0 or n >= 2.0**-126 for n in numbers(value)), "a subnormal norm was accepted"


def check_work(data: bytes) -> str:
    end = canonical(decode_work, encode_work, lambda r: r.chunk_norms)(data)
    _normal(decode_work(data).chunk_norms)
    return end


def check_step_roots(data: bytes) -> str:
    pages, steps = decode_log(data, **LOG)
    assert encode_log(pages, steps) == data and all(s.grad_norm >= 0 for s in steps)
    assert b"".join(encode_step(s) for s in steps) == data[8 + 32 * len(pages) :], (
        "the log root would be over other bytes"
    )
    assert all(math.isfinite(n) for n in numbers(steps))
    return ACCEPTED


def check_commitment(data: bytes) -> str:
    kinds = ("Raw", "Sha256", "BigRaw")
    parts = tuple(Field(kinds[f[0] % 3], f[1:]) for f in cut_frames(data) if f)
    said = decode_commitment(parts)
    if said is None:
        return "refused: absent"
    assert encode_commitment(said) == parts, "two encodings of one commitment were accepted"
    return ACCEPTED


def check_chain_fields(data: bytes) -> str:
    """What the SDK hands over, of whatever shape: absent, or fields of the sizes that the chain allows."""
    stored = cut_object(data)
    parts = parse_fields(stored if isinstance(stored, list | tuple) else [stored])
    if parts is None:
        return "refused: a field of another kind"
    assert all(f.kind in ("Raw", "Sha256") and len(f.data) <= 128 for f in parts)
    assert parse_fields([encode_field(f) for f in parts]) == parts
    return ACCEPTED if decode_commitment(parts) is not None else "fields, but no commitment"


def check_address(data: bytes) -> str:
    address = parse_address(data.decode("utf-8", "replace"))
    if address is None:
        return "refused: no address"
    ip, port = address
    text = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
    assert parse_address(text) == address and 0 < port < 65536 and ip.isascii() and "%" not in ip
    return ACCEPTED


def check_slice_map(data: bytes) -> str:
    count = data[0] + 1 if data else 1
    held = decode_slice_map(data[1:33], count)
    assert len(held) == count
    again = encode_slice_map(held)
    return ACCEPTED if again == data[1:33] else "bits beyond the slices are ignored"


def check_wire(data: bytes) -> str:
    assert b"".join(split_wire(data, LAYOUT, INT8)) == data
    return ACCEPTED


def check_hint(data: bytes) -> str:
    if data and data[0]:
        data = data[1:33].ljust(32, b"\0") + data[33:47].ljust(14, b"\0")
        data += IDENTITY.sign(HINT_DOMAIN + data)  # a liar signs what it likes
    else:
        data = data[1:]
    hint = decode_hint(data, NOW)
    assert NOW < hint.expires <= NOW + 2 * HINT_LIFETIME_S and 0 < hint.address[1] < 65536
    assert encode_hint(IDENTITY, hint.address, hint.expires) == data, "a hint that its peer did not sign"
    return ACCEPTED


def check_state(data: bytes) -> str:
    index, state = decode_state(data)
    assert np.isfinite(state.params).all() and np.isfinite(state.momentum).all() and math.isfinite(state.carry.tau)
    assert encode_state(index, state) == data, "two encodings of one state were accepted"
    state_root(state, 64)
    return ACCEPTED


def check_manifest(data: bytes) -> str:
    run = parse_manifest(data)
    assert parse_manifest(run.canonical()) == run and len(run.digest) == 32
    assert all(math.isfinite(n) for n in numbers(list(_leaves(json.loads(run.canonical())))))
    return ACCEPTED


def _leaves(value: Any) -> Any:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [leaf for part in inner for leaf in _leaves(part)] if isinstance(value, dict | list) else [value]


IDENTITY = PeerIdentity(bytes(32))
STATE = RunState(np.linspace(-1, 1, 9, dtype=np.float32), np.zeros(9, np.float32), 2, samples.CARRY)
SMALL_STATE = RunState(STATE.params[:1], STATE.momentum[:1], 0, Carry(1.0, ()))
COMMITMENTS = tuple(
    encode_commitment(c)
    for role in Role
    for c in (
        samples.commitment(1, role),
        samples.commitment(1, role, second=None, second_round=None),
        samples.commitment(1, role, first=None, first_round=None, second=None, second_round=None, reduces=False),
    )
)
WHOLE_LOG = encode_log((samples.key(1),), samples.STEPS)
ONE_STEP = encode_log((), samples.STEPS[:1])
RUN_JSON = tiny_manifest(GPT2).canonical()
FIELD_OBJECTS = (
    *([encode_field(f) for f in parts] for parts in COMMITMENTS),
    [{"Raw2": [1, 2]}, {"Sha256": tuple(range(32))}],
    [{"Raw42": ((b"x" * 42,),)}],
    [{"BigRaw": "0x" + "00" * 400}],
    ["ResetBondsFlag"],
    [{"TimelockEncrypted": {"encrypted": "0x00", "reveal_round": 5}}],
)
ADDRESSES = (
    b"127.0.0.2:9000",
    b"[2001:db8::1]:80",
    b"1.2.3.4:65535",
    b"[::ffff:1.2.3.4]:1",
    b"[fe80::1%eth0]:80",
    b"a:b",
)
MAPS = tuple(bytes([n - 1]) + encode_slice_map([j % 3 == 0 for j in range(n)]) for n in (1, 3, 64, 256))
SIGNED = b"\1" * 64 + encode_work(samples.WORK)
REQUEST = encode_request(samples.key(1), bytes(64), b"\3\0\0\0")
CARRIES = (encode_carry(samples.CARRY), encode_carry(samples.LEFT), encode_carry(Carry(1e-300, ())))
MANIFESTS = (RUN_JSON, json.dumps(json.loads(RUN_JSON), indent=1).encode(), b'{"model":' + b"[" * 400)
EMPTY_LOG = encode_log((), ())
HINT = encode_hint(IDENTITY, ("10.0.0.1", 9000), int(NOW) + 3600)

DECODERS = (
    Target("work", (encode_work(samples.WORK), *(encode_work(w) for w in SENDERS.works.values())), check_work,
           (WireError,), 16),
    Target("output", (encode_output(samples.OUTPUT),), canonical(decode_output, encode_output), (WireError,), 400),
    Target("signed", (SIGNED, bytes(65)), canonical(decode_signed, encode_signed), (WireError,), 8),
    Target("request", (REQUEST,), canonical(decode_request, lambda r: encode_request(*r)), (WireError,), 8),
    Target("log", (WHOLE_LOG, ONE_STEP, EMPTY_LOG), check_step_roots, (WireError,), 60),
    Target("accusation", (encode_accusation(samples.ACCUSATION),), canonical(decode_accusation, encode_accusation),
           (WireError,), 8),
    Target("carry", CARRIES, canonical(decode_carry, encode_carry, lambda c: c.tau), (WireError,), 40),
    Target("commitment", tuple(pack_frames([bytes([f.kind != "Raw"]) + f.data for f in c]) for c in COMMITMENTS),
           check_commitment, (), 40),
    Target("chain_fields", tuple(pack_object(o) for o in FIELD_OBJECTS), check_chain_fields, (), 400),
    Target("address", ADDRESSES, check_address),
    Target("slice_map", MAPS, check_slice_map),
    Target("wire", (b"".join(SENDERS.made[samples.key(0)].chunks),), check_wire, (WireError,), 8),
    Target("hint", (b"\0" + HINT, b"\1" + HINT), check_hint, (WireError,)),
    Target("state", (encode_state(7, STATE), encode_state(0, SMALL_STATE)),
           check_state, (WireError,), 40),
    Target("manifest", MANIFESTS, check_manifest, (ConfigError,), 400, 512 * 1024),
)  # fmt: skip
