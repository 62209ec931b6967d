"""The calls the local chain accepts, with the real chain's checks in its order and its error names."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from distributed_training.chain.local.state import (
    DRAIN_RATIO,
    NeuronRow,
    RefusedError,
    clear_uid,
    credit,
    neurons,
    next_epoch_block,
    read_epoch,
    require_subnet,
    write_epoch,
)
from distributed_training.chain.local.store import ChainParams, Rows
from distributed_training.chain.local.weights import commit_timelocked_mechanism_weights, set_mechanism_weights
from distributed_training.protocol.rules.yuma import U16_MAX

COMMITMENT_QUOTA_BYTES = 3100  # per hotkey and epoch
COMMITMENT_MIN_BYTES = 100  # charged per call at least
MAX_FIELDS = 3
MAX_RAW_BYTES = 128
HASH_FIELDS = ("Sha256", "BlakeTwo256", "Keccak256", "ShaThree256")
FORBIDDEN_ADDRESSES = ("0.0.0.0", "127.0.0.1", "255.255.255.255", "::", "::1")


Call = Callable[[Rows, ChainParams, str, dict[str, Any]], None]


def burned_register(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Give `hotkey` a uid, paid by the signing coldkey; a full subnet recycles its worst uid."""
    require_subnet(params, args)
    hotkey = args["hotkey"]
    if not params.registration_allowed:
        raise RefusedError("SubNetRegistrationDisabled", f"registration on subnet {params.netuid} is closed")
    if rows.get("uid", hotkey) is not None:
        raise RefusedError("HotKeyAlreadyRegisteredInSubNet", f"hotkey {hotkey} has a uid already")
    held = rows.get("collateral", hotkey, {"locked": 0, "min_locked": 0, "earned": 0, "drain_ratio": DRAIN_RATIO})
    required = params.burn_rao * params.collateral_share // U16_MAX
    locked = max(0, required - held["locked"])
    price, balance = params.burn_rao - required + locked, rows.get("balance", signer, 0)
    if balance < price:
        raise RefusedError("NotEnoughBalanceToStake", f"a registration costs {price} rao, {signer} has {balance}")
    if rows.get("owner", hotkey, signer) != signer:
        raise RefusedError("NonAssociatedColdKey", f"hotkey {hotkey} belongs to another coldkey")
    present = neurons(rows)
    uid = len(present) if len(present) < params.max_uids else recycled_uid(rows, params, present)
    rows.put("balance", signer, balance - price)
    if locked:
        rows.put("collateral", hotkey, {**held, "locked": held["locked"] + locked})
        credit(rows, hotkey, locked)
    place_neuron(rows, NeuronRow(uid, hotkey, signer, rows.block))


def place_neuron(rows: Rows, neuron: NeuronRow) -> None:
    """Put a neuron at its uid as a fresh one: no scores, weights or bonds, last update = registration."""
    uid = str(neuron.uid)
    former = rows.get("neuron", uid)
    if former is not None:
        rows.put("uid", former["hotkey"], None)
        rows.put("axon", former["hotkey"], None)
    rows.put("uid", neuron.hotkey, neuron.uid)
    rows.put("owner", neuron.hotkey, neuron.coldkey)
    rows.put("neuron", uid, asdict(neuron))
    rows.put("last_update", uid, neuron.registered)
    for item in ("weights", "bonds"):
        rows.put(item, uid, None)
        for row, pairs in rows.scan(item).items():
            kept = [pair for pair in pairs if pair[0] != neuron.uid]
            if item == "bonds" and kept != pairs:
                rows.put(item, row, kept)
    write_epoch(rows, clear_uid(read_epoch(rows), neuron.uid))


def recycled_uid(rows: Rows, params: ChainParams, present: list[NeuronRow]) -> int:
    """The uid with the least emission; fresh ones last, never the owner; ties to the older, then the lower uid."""
    emission = read_epoch(rows).emission
    candidates = [n for n in present if n.hotkey != params.owner_hotkey]
    old = [n for n in candidates if rows.block - n.registered >= params.immunity_period]
    if not candidates:
        raise RefusedError("NoNeuronIdAvailable", "the subnet is full and no uid may be recycled")
    return min(old or candidates, key=lambda n: (emission[n.uid], n.registered, n.uid)).uid


def add_stake(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Move rao from the signing coldkey to `hotkey`, one alpha for one TAO."""
    require_subnet(params, args)
    if not params.started:
        raise RefusedError("SubtokenDisabled", f"subnet {params.netuid} is not started")
    balance, amount = rows.get("balance", signer, 0), int(args["amount_staked"])
    if rows.get("uid", args["hotkey"]) is None:
        raise RefusedError("HotKeyAccountNotExists", f"hotkey {args['hotkey']} is not registered")
    if amount <= 0 or balance < amount:
        raise RefusedError("NotEnoughBalanceToStake", f"cannot stake {amount} rao of {balance}")
    rows.put("balance", signer, balance - amount)
    credit(rows, args["hotkey"], amount)


def serve_axon(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Publish the signing hotkey's address."""
    require_subnet(params, args)
    if rows.get("uid", signer) is None:
        raise RefusedError("HotKeyNotRegisteredInNetwork", f"hotkey {signer} has no uid", in_pool=True)
    if args["ip_type"] not in (4, 6):
        raise RefusedError("BadRequest", f"expected ip_type 4 or 6, got {args['ip_type']}", in_pool=True)
    try:
        address = (ipaddress.IPv6Address if args["ip_type"] == 6 else ipaddress.IPv4Address)(int(args["ip"]))
    except ValueError as error:
        raise RefusedError("InvalidIpAddress", str(error), in_pool=True) from error
    if str(address) in FORBIDDEN_ADDRESSES:
        raise RefusedError("InvalidIpAddress", f"the chain does not publish {address}", in_pool=True)
    former = rows.get("axon", signer)
    if former is not None and rows.block - former["block"] < params.serving_rate_limit:
        raise RefusedError("ServingRateLimitExceeded", "the address was published a moment ago", in_pool=True)
    if not 0 < int(args["port"]) <= U16_MAX:
        raise RefusedError("InvalidPort", f"port {args['port']} is not in 1..65535", in_pool=True)
    names = ("version", "ip", "port", "ip_type", "protocol", "placeholder1", "placeholder2")
    rows.put("axon", signer, {"block": rows.block, **{name: int(args[name]) for name in names}})


def set_commitment(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Replace the signing hotkey's commitment; bytes are charged against the epoch's quota."""
    require_subnet(params, args)
    if rows.get("uid", signer) is None:
        raise RefusedError("AccountNotAllowedCommit", f"hotkey {signer} has no uid")
    stored = args["info"]["fields"]
    charge = max(COMMITMENT_MIN_BYTES, sum(field_bytes(field) for field in stored))
    epoch = read_epoch(rows).index
    space = rows.get("space", signer, {"epoch": epoch, "used": 0})
    used = space["used"] if space["epoch"] == epoch else 0
    if used + charge > COMMITMENT_QUOTA_BYTES:
        raise RefusedError(
            "SpaceLimitExceeded",
            f"{used} of {COMMITMENT_QUOTA_BYTES} bytes are used in this epoch; it ends at block "
            f"{next_epoch_block(rows, params.tempo)}",
        )
    rows.put("space", signer, {"epoch": epoch, "used": used + charge})
    rows.put("commitment", signer, {"deposit": 0, "block": rows.block, "info": {"fields": stored}})


def field_bytes(field: dict[str, Any] | str) -> int:
    """Bytes of one composed commitment field."""
    return 0 if isinstance(field, str) else sum(len(bytes.fromhex(value[2:])) for value in field.values())


def compose_fields(fields: list[Any]) -> list[Any]:
    """Commitment fields in the form the chain echoes. ValueError for what the real codec cannot encode."""
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"a commitment has at most {MAX_FIELDS} fields, got {len(fields)}")
    return [
        field if isinstance(field, str) else dict(compose_field(*item) for item in field.items()) for field in fields
    ]


def compose_field(kind: str, value: Any) -> tuple[str, str]:
    raw = bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else bytes(value)
    if kind in HASH_FIELDS:
        fits = len(raw) == 32
    elif kind == "BigRaw":
        fits = len(raw) <= 512
    else:
        fits = kind == f"Raw{len(raw)}" and len(raw) <= MAX_RAW_BYTES
    if not fits:
        raise ValueError(f"{len(raw)} bytes do not fit commitment field {kind!r}")
    return kind, "0x" + raw.hex()


CALLS: dict[tuple[str, str], Call] = {
    ("SubtensorModule", "burned_register"): burned_register,
    ("SubtensorModule", "add_stake"): add_stake,
    ("SubtensorModule", "serve_axon"): serve_axon,
    ("SubtensorModule", "set_mechanism_weights"): set_mechanism_weights,
    ("SubtensorModule", "commit_timelocked_mechanism_weights"): commit_timelocked_mechanism_weights,
    ("Commitments", "set_commitment"): set_commitment,
}
