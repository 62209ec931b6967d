"""The local chain's epochs: what rules.yuma computes, read from and written to rows.

Items (key): uid (hotkey), neuron (uid), axon (hotkey), commitment (hotkey), space (hotkey), stake (hotkey),
balance (coldkey), weights (uid), bonds (uid), last_update (uid), epoch ("").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from distributed_training.chain.local.store import ChainParams, Rows
from distributed_training.protocol.rules.yuma import EpochInput, EpochResult, YumaParams, run_epoch, u16

RAO = 1_000_000_000
ALPHA_PER_BLOCK = 0.82  # of 1 alpha a block, 18 % are the owner's cut


@dataclass(frozen=True, slots=True)
class EpochRow:
    """What the last epoch left; one entry per uid. Shares are u16, emission is rao of the whole epoch."""

    index: int
    block: int
    permits: list[bool]
    active: list[bool]
    incentive: list[int]
    dividends: list[int]
    consensus: list[int]
    validator_trust: list[int]
    rank: list[int]
    emission: list[int]


@dataclass(frozen=True, slots=True)
class NeuronRow:
    uid: int
    hotkey: str
    coldkey: str
    registered: int  # block


COLUMNS = ("permits", "active", "incentive", "dividends", "consensus", "validator_trust", "rank", "emission")


def neurons(rows: Rows) -> list[NeuronRow]:
    """Registered neurons in uid order."""
    return sorted((NeuronRow(**value) for value in rows.scan("neuron").values()), key=lambda n: n.uid)


def empty_epoch(permits: list[bool]) -> EpochRow:
    zeros = [0] * len(permits)
    return EpochRow(0, 0, permits, [True] * len(permits), *([list(zeros) for _ in range(6)]))


def read_epoch(rows: Rows) -> EpochRow:
    return EpochRow(**rows.get("epoch", ""))


def write_epoch(rows: Rows, epoch: EpochRow) -> None:
    rows.put("epoch", "", asdict(epoch))


def clear_uid(epoch: EpochRow, uid: int) -> EpochRow:
    """The row with everything a fresh uid starts from: appended for a new uid, wiped for a recycled one."""
    values = {f.name: getattr(epoch, f.name) for f in fields(EpochRow)}
    for column in COLUMNS:
        fresh = column == "active" if column in ("permits", "active") else 0
        values[column] = [*values[column][:uid], fresh, *values[column][uid + 1 :]]
    return EpochRow(**values)


def next_epoch_block(rows: Rows, tempo: int) -> int:
    return read_epoch(rows).block + tempo


def run_due_epochs(rows: Rows, params: ChainParams) -> None:
    """Run every epoch due up to `rows.block`, each on the state of the block before it. Needs the write lock."""
    while (block := next_epoch_block(rows, params.tempo)) <= rows.block:
        run_one(rows.as_of(block - 1), rows.as_of(block), params)


def run_one(before: Rows, at: Rows, params: ChainParams) -> None:
    present = neurons(before)
    previous = read_epoch(before)
    state = epoch_input(before, present, previous, at.block, params)
    result = run_epoch(state, YumaParams(max_validators=params.max_validators))
    write_epoch(at, stored_epoch(result, previous.index + 1, at.block, params.tempo))
    for neuron in present:
        row = result.bonds[neuron.uid]
        at.put("bonds", str(neuron.uid), [[int(j), int(row[j])] for j in np.flatnonzero(row)])


def epoch_input(
    rows: Rows, present: list[NeuronRow], previous: EpochRow, block: int, params: ChainParams
) -> EpochInput:
    stakes, updates = rows.scan("stake"), rows.scan("last_update")
    owner = next((n.uid for n in present if n.hotkey == params.owner_hotkey), None)
    return EpochInput(
        block=block,
        last_epoch_block=previous.block,
        tempo=params.tempo,
        owner_uid=owner,
        stake=np.array([stakes.get(n.hotkey, 0) for n in present], dtype=np.float64),
        permits=np.array(previous.permits, dtype=np.bool_),
        last_update=np.array([updates.get(str(n.uid), 0) for n in present], dtype=np.int64),
        registered=np.array([n.registered for n in present], dtype=np.int64),
        weights=matrix(rows, "weights", len(present)),
        bonds=matrix(rows, "bonds", len(present)),
    )


def matrix(rows: Rows, item: str, size: int) -> NDArray[np.uint16]:
    dense = np.zeros((size, size), dtype=np.uint16)
    for uid, pairs in rows.scan(item).items():
        for target, value in pairs:
            dense[int(uid), target] = value
    return dense


def stored_epoch(result: EpochResult, index: int, block: int, tempo: int) -> EpochRow:
    pool = ALPHA_PER_BLOCK * RAO * tempo
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
