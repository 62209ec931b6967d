"""The local chain's state as rows, and what its calls and epochs share.

Items: uid, owner, axon, commitment, space, stake, collateral (by hotkey), balance (by coldkey), neuron, weights, bonds,
last_update (by uid), sealed (by epoch of the commit), param (by name), epoch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from distributed_training.chain.local.store import ChainParams, Rows

RAO = 1_000_000_000
DRAIN_RATIO = {"bits": 1 << 64}  # U64F64: as much collateral is freed as was earned


class RefusedError(Exception):
    """The chain says no: `name` is the pallet's error name, from which the SDK derives its code."""

    def __init__(self, name: str, text: str, in_pool: bool = False) -> None:
        super().__init__(text)
        self.name = name
        self.in_pool = in_pool  # refused before it got into a block


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


def credit(rows: Rows, hotkey: str, rao: int) -> None:
    """Add to a hotkey's stake."""
    if rao:
        rows.put("stake", hotkey, rows.get("stake", hotkey, 0) + rao)


def require_subnet(params: ChainParams, args: dict[str, Any]) -> None:
    if args["netuid"] != params.netuid:
        raise RefusedError("SubnetNotExists", f"the local chain holds subnet {params.netuid}, not {args['netuid']}")
    if args.get("mecid", 0) != 0:
        raise RefusedError("MechanismDoesNotExist", "the local chain has mechanism 0 only")
