"""The local chain's answers to runtime calls, in the real runtime's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_training.chain.local.state import EpochRow, NeuronRow, neurons, next_epoch_block, read_epoch
from distributed_training.chain.local.store import ChainParams, Rows

NO_AXON = {
    "block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 0, "protocol": 0, "placeholder1": 0, "placeholder2": 0,
}  # fmt: skip
ALPHA_IN = 10**15  # a pool of equal size on both sides: price 1


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
        "min_allowed_weights": params.min_allowed_weights,
        "max_weights_limit": params.max_weights_limit,
        "registration_allowed": params.registration_allowed,
        "commit_reveal_weights_enabled": params.commit_reveal,
        "commit_reveal_period": params.reveal_period,
        "alpha_in": ALPHA_IN,
        "tao_in": ALPHA_IN,
        "moving_price": {"bits": 1 << 32},
    }


def neuron_columns(rows: Rows, present: list[NeuronRow], epoch: EpochRow) -> dict[str, Any]:
    stakes, updates, axons = rows.scan("stake"), rows.scan("last_update"), rows.scan("axon")
    stake = [stakes.get(n.hotkey, 0) for n in present]
    held = [rows.get("collateral", n.hotkey, {}) for n in present]
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
        "collateral_locked": [h.get("locked", 0) for h in held],
        "collateral_min": [h.get("min_locked", 0) for h in held],
        "collateral_earned": [h.get("earned", 0) for h in held],
        "tao_dividends_per_hotkey": [],
        "alpha_dividends_per_hotkey": [],
    }


RuntimeCall = Callable[[Rows, ChainParams], Any]
RUNTIME_CALLS: dict[tuple[str, str], RuntimeCall] = {
    ("SubnetInfoRuntimeApi", "get_metagraph"): metagraph,
    ("SubnetInfoRuntimeApi", "get_next_epoch_start_block"): lambda rows, params: next_epoch_block(rows, params.tempo),
}  # answers for our netuid; for any other there is none
