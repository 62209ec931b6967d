"""The local chain's storage items and maps in the real runtime's shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed_training.chain.local.calls import COMMITMENT_QUOTA_BYTES
from distributed_training.chain.local.state import DRAIN_RATIO, read_epoch
from distributed_training.chain.local.store import ChainParams, Rows

NO_ACCOUNT = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"

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


def _collateral(rows: Rows, params: ChainParams, key: list[Any]) -> dict[str, Any] | None:
    ours = key[0] == params.netuid and rows.get("owner", key[1]) == key[2]
    return rows.get("collateral", key[1]) if ours else None


ITEMS: dict[tuple[str, str], Item] = {
    ("SubtensorModule", "Uids"): _uid,
    ("SubtensorModule", "LastUpdate"): _last_update,
    ("SubtensorModule", "Weights"): lambda rows, params, key: rows.get("weights", str(key[1]), []),
    ("SubtensorModule", "Tempo"): _constant(lambda p: p.tempo, 10),
    ("SubtensorModule", "WeightsSetRateLimit"): _constant(lambda p: p.weights_rate_limit, 100),
    ("SubtensorModule", "MaxWeightsLimit"): _constant(lambda p: p.max_weights_limit, 65535),
    ("SubtensorModule", "MinAllowedWeights"): _constant(lambda p: p.min_allowed_weights, 1),
    ("SubtensorModule", "ImmunityPeriod"): _constant(lambda p: p.immunity_period),
    ("SubtensorModule", "Burn"): _constant(lambda p: p.burn_rao),
    ("SubtensorModule", "NetworkRegistrationAllowed"): _constant(lambda p: p.registration_allowed, False),
    ("SubtensorModule", "SubtokenEnabled"): _constant(lambda p: p.started, False),
    ("SubtensorModule", "CollateralLockShare"): _constant(lambda p: p.collateral_share),
    ("SubtensorModule", "CollateralDrainRatio"): _constant(lambda p: DRAIN_RATIO, DRAIN_RATIO),
    ("SubtensorModule", "MinerCollateral"): _collateral,
    ("SubtensorModule", "Owner"): lambda rows, params, key: rows.get("owner", key[0], NO_ACCOUNT),
    ("SubtensorModule", "CommitRevealWeightsEnabled"): _constant(lambda p: p.commit_reveal, False),
    ("SubtensorModule", "RevealPeriodEpochs"): _constant(lambda p: p.reveal_period, 1),
    ("SubtensorModule", "SubnetEmissionEnabled"): _constant(lambda p: p.emission_enabled, False),
    ("SubtensorModule", "SubnetEpochConsensus"): _constant(lambda p: "Yuma", "Yuma"),
    ("SubtensorModule", "NetworksAdded"): _constant(lambda p: True, False),
    ("SubtensorModule", "LastEpochBlock"): lambda rows, params, key: read_epoch(rows).block,
    ("SubtensorModule", "SubnetEpochIndex"): lambda rows, params, key: read_epoch(rows).index,
    ("SubtensorModule", "BlocksSinceLastStep"): _since_step,
    ("SubtensorModule", "PendingEpochAt"): _constant(lambda p: 0),
    ("Commitments", "CommitmentOf"): _commitment,
    ("Commitments", "MaxSpace"): lambda rows, params, key: COMMITMENT_QUOTA_BYTES,
    ("System", "Account"): _account,
}

Map = Callable[[Rows, ChainParams, list[Any]], list[tuple[Any, Any]]]


def _sealed(rows: Rows, params: ChainParams, key: list[Any]) -> list[tuple[Any, Any]]:
    """Epoch of the commit -> (hotkey, block, ciphertext, round) of each; what is in them stays with the beacon."""
    names = ("hotkey", "block", "commit", "reveal_round")
    return [
        (int(epoch), [tuple(commit[name] for name in names) for commit in commits])
        for epoch, commits in rows.scan("sealed").items()
    ]


SUBNET_MAPS: dict[tuple[str, str], Map] = {
    ("Commitments", "CommitmentOf"): lambda rows, params, key: list(rows.scan("commitment").items()),
    ("Commitments", "RevealedCommitments"): lambda rows, params, key: [],
    ("SubtensorModule", "Uids"): lambda rows, params, key: list(rows.scan("uid").items()),
    ("SubtensorModule", "Weights"): lambda rows, params, key: [
        (int(uid), [tuple(p) for p in row]) for uid, row in rows.scan("weights").items()
    ],
    ("SubtensorModule", "TimelockedWeightCommits"): _sealed,
    ("SubtensorModule", "MinerCollateral"): lambda rows, params, key: [
        ((hotkey, rows.get("owner", hotkey)), held) for hotkey, held in rows.scan("collateral").items()
    ],
}  # first key is a netuid: empty for another subnet
MAPS: dict[tuple[str, str], Map] = {
    ("Commitments", "CommitmentOf"): lambda rows, params, key: [
        ((params.netuid, hotkey), value) for hotkey, value in rows.scan("commitment").items()
    ],
    ("SubtensorModule", "NetworksAdded"): lambda rows, params, key: [(params.netuid, True)],
}
