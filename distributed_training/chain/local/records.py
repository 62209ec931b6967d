"""The local chain's answers in the real runtime's shapes: storage items, maps and runtime calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_training.chain.local.epoch import EpochRow, NeuronRow, neurons, next_epoch_block, read_epoch
from distributed_training.chain.local.store import ChainParams, Rows, block_hash
from distributed_training.protocol.rules.yuma import U16_MAX

NO_ACCOUNT = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"
NO_AXON = {
    "block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 0, "protocol": 0, "placeholder1": 0, "placeholder2": 0,
}  # fmt: skip
ALPHA_IN = 10**15  # a pool of equal size on both sides: price 1

Item = Callable[[Rows, ChainParams, list[Any]], Any]


def _constant(value: Callable[[ChainParams], Any], empty: Any = 0) -> Item:
    """A hyperparameter: constant for our netuid, `empty` for others (as on a chain, where nothing is missing)."""
    return lambda rows, params, key: value(params) if key[0] == params.netuid else empty


def _uid(rows: Rows, params: ChainParams, key: list[Any]) -> int | None:
    return rows.get("uid", key[1]) if key[0] == params.netuid else None


def _commitment(rows: Rows, params: ChainParams, key: list[Any]) -> Any:
    return rows.get("commitment", key[1]) if key[0] == params.netuid else None


def _last_update(rows: Rows, params: ChainParams, key: list[Any]) -> list[int]:
    updates = rows.scan("last_update") if key[0] == params.netuid else {}
    return [updates[str(uid)] for uid in range(len(updates))]


def _account(rows: Rows, params: ChainParams, key: list[Any]) -> dict[str, Any]:
    data = {"free": rows.get("balance", key[0], 0), "reserved": 0, "frozen": 0, "flags": 0}
    return {"nonce": 0, "consumers": 0, "providers": 1, "sufficients": 0, "data": data}


def _since_step(rows: Rows, params: ChainParams, key: list[Any]) -> int:
    return rows.block - read_epoch(rows).block


def _block_hash(rows: Rows, params: ChainParams, key: list[Any]) -> str:
    known = 0 <= key[0] <= rows.block
    return "0x" + (block_hash(params.seed, key[0]).hex() if known else "00" * 32)


ITEMS: dict[tuple[str, str], Item] = {
    ("SubtensorModule", "Uids"): _uid,
    ("SubtensorModule", "Keys"): lambda rows, params, key: (rows.get("neuron", str(key[1])) or {"hotkey": NO_ACCOUNT})[
        "hotkey"
    ],
    ("SubtensorModule", "LastUpdate"): _last_update,
    ("SubtensorModule", "Weights"): lambda rows, params, key: rows.get("weights", str(key[1]), []),
    ("SubtensorModule", "Bonds"): lambda rows, params, key: rows.get("bonds", str(key[1]), []),
    ("SubtensorModule", "ValidatorPermit"): lambda rows, params, key: read_epoch(rows).permits,
    ("SubtensorModule", "Tempo"): _constant(lambda p: p.tempo, 10),
    ("SubtensorModule", "WeightsSetRateLimit"): _constant(lambda p: p.weights_rate_limit, 100),
    ("SubtensorModule", "WeightsVersionKey"): _constant(lambda p: p.version_key),
    ("SubtensorModule", "MaxWeightsLimit"): _constant(lambda p: U16_MAX, U16_MAX),
    ("SubtensorModule", "MinAllowedWeights"): _constant(lambda p: 1, 1),
    ("SubtensorModule", "MaxAllowedUids"): _constant(lambda p: p.max_uids),
    ("SubtensorModule", "MaxAllowedValidators"): _constant(lambda p: p.max_validators),
    ("SubtensorModule", "ServingRateLimit"): _constant(lambda p: p.serving_rate_limit, 50),
    ("SubtensorModule", "ImmunityPeriod"): _constant(lambda p: p.immunity_period),
    ("SubtensorModule", "Burn"): _constant(lambda p: p.burn_rao),
    ("SubtensorModule", "Difficulty"): _constant(lambda p: 0),
    ("SubtensorModule", "CommitRevealWeightsEnabled"): _constant(lambda p: False, False),
    ("SubtensorModule", "RevealPeriodEpochs"): _constant(lambda p: 1, 1),
    ("SubtensorModule", "SubnetEmissionEnabled"): _constant(lambda p: True, False),
    ("SubtensorModule", "SubnetEpochConsensus"): _constant(lambda p: "Yuma", "Yuma"),
    ("SubtensorModule", "NetworksAdded"): _constant(lambda p: True, False),
    ("SubtensorModule", "SubnetOwner"): _constant(lambda p: p.owner_coldkey, NO_ACCOUNT),
    ("SubtensorModule", "SubnetOwnerHotkey"): _constant(lambda p: p.owner_hotkey, NO_ACCOUNT),
    ("SubtensorModule", "SubnetworkN"): lambda rows, params, key: len(neurons(rows)) if key[0] == params.netuid else 0,
    ("SubtensorModule", "LastEpochBlock"): lambda rows, params, key: read_epoch(rows).block,
    ("SubtensorModule", "LastMechansimStepBlock"): lambda rows, params, key: read_epoch(rows).block,
    ("SubtensorModule", "SubnetEpochIndex"): lambda rows, params, key: read_epoch(rows).index,
    ("SubtensorModule", "BlocksSinceLastStep"): _since_step,
    ("SubtensorModule", "PendingEpochAt"): _constant(lambda p: 0),
    ("Commitments", "CommitmentOf"): _commitment,
    ("System", "Account"): _account,
    ("System", "BlockHash"): _block_hash,
}

Map = Callable[[Rows, ChainParams, list[Any]], list[tuple[Any, Any]]]


def _by_uid(item: str) -> Map:
    return lambda rows, params, key: [(int(uid), [tuple(p) for p in row]) for uid, row in rows.scan(item).items()]


def _subnet(value: Callable[[Rows, ChainParams], Any]) -> Map:
    return lambda rows, params, key: [(params.netuid, value(rows, params))]


def _membership(rows: Rows, params: ChainParams, key: list[Any]) -> list[tuple[Any, Any]]:
    return [] if rows.get("uid", key[0]) is None else [(params.netuid, True)]


SUBNET_MAPS: dict[tuple[str, str], Map] = {
    ("Commitments", "CommitmentOf"): lambda rows, params, key: list(rows.scan("commitment").items()),
    ("Commitments", "RevealedCommitments"): lambda rows, params, key: [],
    ("SubtensorModule", "Uids"): lambda rows, params, key: list(rows.scan("uid").items()),
    ("SubtensorModule", "Keys"): lambda rows, params, key: [(n.uid, n.hotkey) for n in neurons(rows)],
    ("SubtensorModule", "Weights"): _by_uid("weights"),
    ("SubtensorModule", "Bonds"): _by_uid("bonds"),
}  # first key is a netuid: empty for another subnet
MAPS: dict[tuple[str, str], Map] = {
    ("SubtensorModule", "IsNetworkMember"): _membership,
    ("SubtensorModule", "NetworksAdded"): _subnet(lambda rows, params: True),
    ("SubtensorModule", "Tempo"): _subnet(lambda rows, params: params.tempo),
    ("SubtensorModule", "Burn"): _subnet(lambda rows, params: params.burn_rao),
    ("SubtensorModule", "SubnetworkN"): _subnet(lambda rows, params: len(neurons(rows))),
}


def metagraph(rows: Rows, params: ChainParams) -> dict[str, Any]:
    """The record of SubnetInfoRuntimeApi.get_metagraph: subnet fields and one column per neuron property."""
    present, epoch = neurons(rows), read_epoch(rows)
    return {**subnet_fields(rows, params, epoch, len(present)), **neuron_columns(rows, present, epoch)}


def subnet_fields(rows: Rows, params: ChainParams, epoch: EpochRow, count: int) -> dict[str, Any]:
    return {
        "netuid": params.netuid,
        "name": list(b"local"),
        "symbol": list("α".encode()),
        "identity": None,
        "network_registered_at": 0,
        "owner_hotkey": params.owner_hotkey,
        "owner_coldkey": params.owner_coldkey,
        "block": rows.block,
        "tempo": params.tempo,
        "last_step": epoch.block,
        "blocks_since_last_step": rows.block - epoch.block,
        "num_uids": count,
        "max_uids": params.max_uids,
        "max_validators": params.max_validators,
        "weights_version": params.version_key,
        "weights_rate_limit": params.weights_rate_limit,
        "serving_rate_limit": params.serving_rate_limit,
        "immunity_period": params.immunity_period,
        "burn": params.burn_rao,
        "registration_allowed": True,
        "commit_reveal_weights_enabled": False,
        "alpha_in": ALPHA_IN,
        "tao_in": ALPHA_IN,
        "moving_price": {"bits": 1 << 32},
    }


def neuron_columns(rows: Rows, present: list[NeuronRow], epoch: EpochRow) -> dict[str, Any]:
    stakes, updates, axons = rows.scan("stake"), rows.scan("last_update"), rows.scan("axon")
    stake = [stakes.get(n.hotkey, 0) for n in present]
    return {
        "hotkeys": [n.hotkey for n in present],
        "coldkeys": [n.coldkey for n in present],
        "identities": [None] * len(present),
        "axons": [axons.get(n.hotkey, NO_AXON) for n in present],
        "active": epoch.active,
        "validator_permit": epoch.permits,
        "pruning_score": epoch.incentive,
        "last_update": [updates[str(n.uid)] for n in present],
        "emission": epoch.emission,
        "dividends": epoch.dividends,
        "incentives": epoch.incentive,
        "consensus": epoch.consensus,
        "trust": epoch.validator_trust,
        "rank": epoch.rank,
        "block_at_registration": [n.registered for n in present],
        "alpha_stake": stake,
        "tao_stake": [0] * len(present),
        "total_stake": stake,
        "tao_dividends_per_hotkey": [],
        "alpha_dividends_per_hotkey": [],
    }


def neuron_records(rows: Rows, params: ChainParams, lite: bool) -> list[dict[str, Any]]:
    """The records of NeuronInfoRuntimeApi.get_neurons(_lite)."""
    columns = metagraph(rows, params)
    records = [neuron_record(columns, uid) for uid in range(columns["num_uids"])]
    if not lite:
        for record in records:
            record["weights"] = [tuple(pair) for pair in rows.get("weights", str(record["uid"]), [])]
            record["bonds"] = [tuple(pair) for pair in rows.get("bonds", str(record["uid"]), [])]
    return records


def neuron_record(columns: dict[str, Any], uid: int) -> dict[str, Any]:
    same = ("active", "rank", "emission", "consensus", "trust", "dividends", "last_update", "validator_permit")
    return {
        "uid": uid,
        "netuid": columns["netuid"],
        "hotkey": columns["hotkeys"][uid],
        "coldkey": columns["coldkeys"][uid],
        "axon_info": columns["axons"][uid],
        "prometheus_info": {"block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 0},
        "stake": [(columns["coldkeys"][uid], columns["total_stake"][uid])],
        "incentive": columns["incentives"][uid],
        "validator_trust": columns["trust"][uid],
        "pruning_score": columns["pruning_score"][uid],
        **{name: columns[name][uid] for name in same},
    }


def hyperparameters(params: ChainParams) -> list[dict[str, Any]]:
    """The record of SubnetInfoRuntimeApi.get_subnet_hyperparams_v3."""
    values = {
        "kappa": {"U16": 32767},
        "immunity_period": {"U16": params.immunity_period},
        "min_allowed_weights": {"U16": 1},
        "max_weights_limit": {"U16": U16_MAX},
        "tempo": {"U16": params.tempo},
        "weights_version": {"U64": params.version_key},
        "weights_rate_limit": {"U64": params.weights_rate_limit},
        "serving_rate_limit": {"U64": params.serving_rate_limit},
        "max_validators": {"U16": params.max_validators},
        "registration_allowed": {"Bool": True},
        "commit_reveal_period": {"U64": 1},
        "commit_reveal_weights_enabled": {"Bool": False},
        "yuma_version": {"U16": 2},
        "subnet_is_active": {"Bool": True},
    }
    return [{"name": name, "value": value} for name, value in values.items()]


RuntimeCall = Callable[[Rows, ChainParams], Any]
RUNTIME_CALLS: dict[tuple[str, str], tuple[RuntimeCall, Any]] = {
    ("SubnetInfoRuntimeApi", "get_metagraph"): (metagraph, None),
    ("SubnetInfoRuntimeApi", "get_subnet_hyperparams_v3"): (lambda rows, params: hyperparameters(params), None),
    ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"): (
        lambda rows, params: next_epoch_block(rows, params.tempo),
        None,
    ),
    ("NeuronInfoRuntimeApi", "get_neurons_lite"): (lambda rows, params: neuron_records(rows, params, True), []),
    ("NeuronInfoRuntimeApi", "get_neurons"): (lambda rows, params: neuron_records(rows, params, False), []),
}  # call -> (answer for our netuid, answer for any other)
