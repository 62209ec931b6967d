"""Weights on the local chain: set in the open, or committed sealed and revealed, with the real chain's checks."""

from __future__ import annotations

from typing import Any

from distributed_training.chain.local.state import RefusedError, neurons, read_epoch, require_subnet
from distributed_training.chain.local.store import ChainParams, Rows
from distributed_training.protocol.rules.yuma import U16_MAX, upscale_weights

COMMIT_REVEAL_VERSION = 4
MAX_SEALED = 10  # of one hotkey in one epoch


def set_mechanism_weights(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Replace the signing validator's weights, on a subnet without commit-reveal."""
    require_subnet(params, args)
    check_pool(rows, params, signer, limited=not params.commit_reveal)
    if params.commit_reveal:
        raise RefusedError("CommitRevealEnabled", "this subnet takes sealed weights only")
    store_weights(rows, params, signer, args)
    rows.put("last_update", str(rows.get("uid", signer)), rows.block)


def commit_timelocked_mechanism_weights(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    """Keep the signing validator's sealed weights; `opening` is what the local beacon has for them, or None."""
    require_subnet(params, args)
    check_pool(rows, params, signer, limited=True)
    if not params.commit_reveal:
        raise RefusedError("CommitRevealDisabled", "this subnet takes open weights only")
    if args["commit_reveal_version"] != COMMIT_REVEAL_VERSION:
        raise RefusedError("IncorrectCommitRevealVersion", f"expected version {COMMIT_REVEAL_VERSION}")
    uid = require_uid(rows, signer)
    epoch = str(read_epoch(rows).index)
    sealed = rows.get("sealed", epoch, [])
    if sum(commit["hotkey"] == signer for commit in sealed) >= MAX_SEALED:
        raise RefusedError("TooManyUnrevealedCommits", f"{MAX_SEALED} commits of {signer} are not revealed yet")
    kept = {name: args[name] for name in ("commit", "reveal_round", "opening")}
    rows.put("sealed", epoch, [*sealed, {"hotkey": signer, "block": rows.block, **kept}])
    rows.put("last_update", str(uid), rows.block)


def reveal(rows: Rows, params: ChainParams, epoch: int) -> None:
    """Show what was committed `reveal_period` epochs before `epoch`; older commits are gone, unrevealed.

    What no pulse opens stays until then. A row that breaks a rule by now is dropped without a word, as on the chain.
    """
    due = epoch - params.reveal_period
    for old in rows.scan("sealed"):
        if int(old) < due:
            rows.put("sealed", old, None)
    shut = []
    for commit in rows.get("sealed", str(due), []):
        if not params.beacon or commit["opening"] is None:
            shut.append(commit)
            continue
        try:
            store_weights(rows, params, commit["hotkey"], commit["opening"])
        except RefusedError:
            continue
    if rows.get("sealed", str(due)) is not None:
        rows.put("sealed", str(due), shut or None)


def first_commits(rows: Rows) -> dict[str, int]:
    """Hotkey -> block of the oldest commit that may still be revealed."""
    first: dict[str, int] = {}
    for commits in rows.scan("sealed").values():
        for commit in commits:
            first[commit["hotkey"]] = min(commit["block"], first.get(commit["hotkey"], commit["block"]))
    return first


def store_weights(rows: Rows, params: ChainParams, signer: str, args: dict[str, Any]) -> None:
    dests, weights = [int(d) for d in args["dests"]], [int(w) for w in args["weights"]]
    uid = check_weights(rows, params, signer, dests, weights, int(args["version_key"]))
    rows.put("weights", str(uid), [[dest, up] for dest, up in zip(dests, upscale_weights(weights), strict=True)])


def check_pool(rows: Rows, params: ChainParams, signer: str, *, limited: bool) -> None:
    """What the chain's pool looks at before a call gets into a block."""
    if signer != params.owner_hotkey and rows.get("stake", signer, 0) < params.stake_threshold:
        raise RefusedError("StakeAmountTooLow", f"weights need a stake of {params.stake_threshold} rao", in_pool=True)
    uid = rows.get("uid", signer)
    last = 0 if uid is None else rows.get("last_update", str(uid), 0)
    if limited and last and rows.block - last < params.weights_rate_limit:
        text = f"weights were set at block {last}, limit {params.weights_rate_limit}"
        raise RefusedError("RateLimitExceeded", text, in_pool=True)


def require_uid(rows: Rows, hotkey: str) -> int:
    uid = rows.get("uid", hotkey)
    if uid is None:
        raise RefusedError("HotKeyNotRegisteredInSubNet", f"hotkey {hotkey} has no uid")
    return uid


def check_weights(
    rows: Rows, params: ChainParams, signer: str, dests: list[int], weights: list[int], version_key: int
) -> int:
    """The real chain's checks in its order; returns the validator's uid."""
    if len(dests) != len(weights):
        raise RefusedError("WeightVecNotEqualSize", f"{len(dests)} uids but {len(weights)} weights")
    count = len(neurons(rows))
    if len(dests) > count:
        raise RefusedError("UidsLengthExceedUidsInSubNet", f"{len(dests)} uids named, {count} exist")
    uid = require_uid(rows, signer)
    if version_key < params.version_key:
        raise RefusedError("IncorrectWeightVersionKey", f"version key {version_key} is below {params.version_key}")
    if dests != [uid] and signer != params.owner_hotkey and not read_epoch(rows).permits[uid]:
        raise RefusedError("NeuronNoValidatorPermit", f"uid {uid} has no validator permit")
    if len(set(dests)) != len(dests):
        raise RefusedError("DuplicateUids", "a uid is named twice")
    if any(not 0 <= dest < count for dest in dests):
        raise RefusedError("UidVecContainInvalidOne", f"a uid is outside 0..{count - 1}")
    if dests != [uid] and len(dests) < min(params.min_allowed_weights, count):
        raise RefusedError("WeightVecLengthIsLow", f"{len(dests)} weights, expected {params.min_allowed_weights}")
    top, limit = max(weights, default=0), params.max_weights_limit
    if dests != [uid] and limit < U16_MAX and top * U16_MAX > limit * sum(weights):
        raise RefusedError("MaxWeightExceeded", f"one uid has more than {limit}/65535 of the row")
    return uid
