"""Creating a local chain, starting its clock, and giving out money: what no call of the chain can do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distributed_training.chain.local.epoch import run_due_epochs
from distributed_training.chain.local.state import RAO, NeuronRow, empty_epoch, read_epoch, write_epoch
from distributed_training.chain.local.store import ChainParams, FileRows, LocalStore, Rows, create_file, in_force
from distributed_training.chain.local.weights import reveal
from distributed_training.errors import ConfigError

REGISTRATION_RAO = RAO // 10


@dataclass(frozen=True, slots=True)
class GenesisNeuron:
    """A neuron that exists at block 0; its place in the sequence is its uid."""

    hotkey: str
    coldkey: str
    stake: float  # alpha
    permit: bool


def create_chain(
    path: Path,
    *,
    seed: int,
    block_s: float,
    netuid: int,
    tempo: int,
    weights_rate_limit: int,
    version_key: int,
    max_uids: int,
    owner_hotkey: str,
    owner_coldkey: str,
    neurons: Sequence[GenesisNeuron],
    max_validators: int = 64,
    serving_rate_limit: int = 0,
    immunity_period: int = 4096,
    burn_rao: int = REGISTRATION_RAO,
    **more: Any,
) -> None:
    """Write a new chain file with its clock not started: registrations, stakes and permits hold at block 0.

    `more` are other fields of ChainParams, `commit_reveal=True` for one. ConfigError when the path exists or the
    numbers make no chain.
    """
    if block_s <= 0 or tempo < 1 or not 0 < len(neurons) <= max_uids:
        raise ConfigError(
            f"expected block_s > 0, tempo >= 1 and 1..max_uids neurons, got {block_s}, {tempo}, {len(neurons)}"
        )
    if len({n.hotkey for n in neurons}) != len(neurons):
        raise ConfigError("a hotkey is named twice at genesis")
    params = ChainParams(
        seed, block_s, netuid, tempo, weights_rate_limit, version_key, max_uids, max_validators, serving_rate_limit,
        immunity_period, burn_rao, owner_hotkey, owner_coldkey, **more,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    connection = create_file(draft, params)
    try:
        connection.execute("begin")
        write_genesis(FileRows(connection, 0), neurons)
        connection.execute("commit")
    finally:
        connection.close()
    if path.exists():
        draft.unlink()
        raise ConfigError(f"{path} exists already; expected a path for a new local chain")
    draft.replace(path)


def write_genesis(rows: Rows, neurons: Sequence[GenesisNeuron]) -> None:
    """Registrations, stakes and permits, at the block of `rows`."""
    for uid, neuron in enumerate(neurons):
        rows.put("uid", neuron.hotkey, uid)
        rows.put("owner", neuron.hotkey, neuron.coldkey)
        rows.put("neuron", str(uid), asdict(NeuronRow(uid, neuron.hotkey, neuron.coldkey, 0)))
        rows.put("stake", neuron.hotkey, round(neuron.stake * RAO))
        rows.put("last_update", str(uid), 0)
    write_epoch(rows, empty_epoch([neuron.permit for neuron in neurons]))


def start_clock(path: Path) -> float:
    """Make now the start of the block at which the chain stands, 0 or where it was stopped; returns the time of block
    0. A clock that runs already is left alone."""
    with opened(path) as store:
        with store.transaction():
            return store.genesis_time() or store.resume_clock()


def stop_clock(path: Path) -> None:
    """Let the chain stand at the last block anybody read until `start_clock`. For a chain that no process uses."""
    with opened(path) as store:
        store.stop_clock()


def resume_clock(path: Path) -> float:
    """Let the clock go on at the last block anybody read, as if no time had passed; returns the time of block 0.

    For a run that was stopped.
    """
    with opened(path) as store:
        if store.genesis_time() is None:
            raise ConfigError(f"the clock of {path} was never started; expected a run that was stopped")
        return store.resume_clock()


def rewind(path: Path, block: int) -> None:
    """Make `block` the head again: what was written behind it is gone, and blocks to come have other hashes.

    A few blocks back it is a reorganisation; back to 0 it is a chain that was restarted from its genesis. Processes
    that use the chain see it at their next call.
    """
    with opened(path) as store:
        store.rewind(block)


def change_params(path: Path, **changes: Any) -> int:
    """Change fields of ChainParams from the next block on, which is returned: what owners, root and upgrades do."""
    with opened(path) as store, store.transaction() as rows:
        put_params(rows, store.params, changes)
        return rows.block


def put_params(rows: Rows, params: ChainParams, changes: Mapping[str, Any]) -> None:
    """TypeError for a field that ChainParams has not. A beacon that is back opens what it still may."""
    replace(params, **changes)
    for name, value in changes.items():
        rows.put("param", name, value)
    reveal(rows, in_force(rows, params), read_epoch(rows).index)


def fund(path: Path, coldkey: str, tao: float) -> None:
    """Add money to a coldkey out of nothing, in the next block."""
    with opened(path) as store, store.transaction() as rows:
        rows.put("balance", coldkey, rows.get("balance", coldkey, 0) + round(tao * RAO))


def chain_params(path: Path) -> ChainParams:
    """As the chain was created."""
    with opened(path) as store:
        return store.params


def opened(path: Path) -> closing[LocalStore]:
    return closing(LocalStore(path, run_due_epochs))
