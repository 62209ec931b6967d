"""The local chain's epochs: what rules.yuma computes from rows, written back, and emission paid out as stake."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distributed_training.chain.local.state import (
    RAO,
    EpochRow,
    NeuronRow,
    credit,
    neurons,
    next_epoch_block,
    read_epoch,
    write_epoch,
)
from distributed_training.chain.local.store import ChainParams, Rows, in_force
from distributed_training.chain.local.weights import first_commits, reveal
from distributed_training.protocol.rules.yuma import U16_MAX, EpochInput, EpochResult, YumaParams, run_epoch, u16

ALPHA_PER_BLOCK = 1.0  # the most a subnet gets
OWNER_CUT = 11796  # u16: 18 %


def run_due_epochs(rows: Rows, params: ChainParams) -> None:
    """Run every epoch due up to `rows.block`, before anything else in its block. Needs the write lock."""
    while (block := next_epoch_block(rows, in_force(rows, params).tempo)) <= rows.block:
        at = rows.as_of(block)
        run_one(at, in_force(at, params))


def run_one(at: Rows, params: ChainParams) -> None:
    """In the real chain's order: reveal what is due, compute with the old permits, pay."""
    present, previous = neurons(at), read_epoch(at)
    reveal(at, params, previous.index + 1)
    state = epoch_input(at, present, previous, params)
    result = run_epoch(state, YumaParams(max_validators=params.max_validators))
    emits = params.started and params.registration_allowed
    pool = int(ALPHA_PER_BLOCK * RAO) * (at.block - previous.block) * emits
    cut = pool * OWNER_CUT // U16_MAX
    write_epoch(at, stored_epoch(result, previous.index + 1, at.block, pool - cut))
    for neuron in present:
        row = result.bonds[neuron.uid]
        at.put("bonds", str(neuron.uid), [[int(j), int(row[j])] for j in np.flatnonzero(row)])
    pay(at, params, present, result, pool - cut)
    credit(at, params.owner_hotkey, cut)


def pay(at: Rows, params: ChainParams, present: list[NeuronRow], result: EpochResult, pool: int) -> None:
    """Each hotkey's emission becomes stake, and frees its collateral; what the owner earns as a miner is burned."""
    both = float((result.incentive + result.dividends).sum())
    for neuron in present:
        share = float(result.emission[neuron.uid])
        if neuron.hotkey == params.owner_hotkey and both > 0:
            share -= float(result.incentive[neuron.uid]) / both
        earned = int(max(0.0, share) * pool)
        credit(at, neuron.hotkey, earned)
        held = at.get("collateral", neuron.hotkey)
        if held is not None and earned:
            freed = {"earned": held["earned"] + earned, "locked": max(0, held["locked"] - earned)}
            at.put("collateral", neuron.hotkey, {**held, **freed})


def epoch_input(rows: Rows, present: list[NeuronRow], previous: EpochRow, params: ChainParams) -> EpochInput:
    stakes, updates = rows.scan("stake"), rows.scan("last_update")
    owner = next((n.uid for n in present if n.hotkey == params.owner_hotkey), None)
    stake = np.array([stakes.get(n.hotkey, 0) for n in present], dtype=np.float64)
    counts = stake >= params.stake_threshold
    if owner is not None:
        counts[owner] = True
    registered = np.array([n.registered for n in present], dtype=np.int64)
    weights = matrix(rows, "weights", len(present))
    for hotkey, block in first_commits(rows).items():
        row = rows.get("uid", hotkey)
        if row is not None:
            weights[row, registered > block] = 0  # uids given out since its oldest sealed commit
    return EpochInput(
        block=rows.block,
        last_epoch_block=previous.block,
        tempo=params.tempo,
        owner_uid=owner,
        stake=np.where(counts, stake, 0.0),
        permits=np.array(previous.permits, dtype=np.bool_),
        last_update=np.array([updates.get(str(n.uid), 0) for n in present], dtype=np.int64),
        registered=registered,
        weights=weights,
        bonds=matrix(rows, "bonds", len(present)),
    )


def matrix(rows: Rows, item: str, size: int) -> NDArray[np.uint16]:
    dense = np.zeros((size, size), dtype=np.uint16)
    for uid, pairs in rows.scan(item).items():
        for target, value in pairs:
            dense[int(uid), target] = value
    return dense


def stored_epoch(result: EpochResult, index: int, block: int, pool: int) -> EpochRow:
    return EpochRow(
        index=index,
        block=block,
        permits=[bool(p) for p in result.permits],
        active=[bool(a) for a in result.active],
        incentive=u16(result.incentive).tolist(),
        dividends=u16(result.dividends).tolist(),
        consensus=u16(result.consensus).tolist(),
        validator_trust=u16(result.validator_trust).tolist(),
        rank=u16(result.rank).tolist(),
        emission=[int(share * pool) for share in result.emission],
    )
