"""The chain of simulations and tests: one ledger in this process, on the event loop's clock.

The rules are those of the local chain (`local/calls`, `local/epoch`); what differs is where rows live and who cuts the
blocks. No signatures: a client is given the hotkey it writes for.
"""

from __future__ import annotations

import asyncio
import ipaddress
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bittensor as bt

from distributed_training.chain.base import Head
from distributed_training.chain.fields import check_fields, encode_field, parse_fields
from distributed_training.chain.forks import Fork
from distributed_training.chain.keys import hotkey_public_key
from distributed_training.chain.local.calls import CALLS
from distributed_training.chain.local.epoch import run_due_epochs
from distributed_training.chain.local.genesis import GenesisNeuron, put_params, write_genesis
from distributed_training.chain.local.state import (
    RAO,
    EpochRow,
    NeuronRow,
    RefusedError,
    neurons,
    next_epoch_block,
    read_epoch,
)
from distributed_training.chain.local.store import FINALITY_BLOCKS, ChainParams, block_hash, in_force
from distributed_training.chain.local.weights import COMMIT_REVEAL_VERSION
from distributed_training.errors import ChainFault, ChainRefused
from distributed_training.protocol.commitments import decode_commitment
from distributed_training.protocol.rules.yuma import U16_MAX
from distributed_training.protocol.types import BlockRef, Commitment, Field, Neuron, Roster, SubnetParams

POLL_S = 0.2  # of a write that waits while the clock is not started
_Series = tuple[list[int], list[Any]]  # blocks in ascending order, and the value from each on


@dataclass(frozen=True, slots=True)
class MemoryRows:
    """`local_store.Rows` over plain dicts. Values are replaced, never changed."""

    items: dict[str, dict[str, _Series]]
    block: int

    def get(self, item: str, key: str, default: Any = None) -> Any:
        value = self._value(self.items.get(item, {}).get(key))
        return default if value is None else value

    def scan(self, item: str) -> dict[str, Any]:
        series = self.items.get(item, {})
        values = {key: self._value(series[key]) for key in sorted(series)}
        return {key: value for key, value in values.items() if value is not None}

    def put(self, item: str, key: str, value: Any) -> None:
        blocks, values = self.items.setdefault(item, {}).setdefault(key, ([], []))
        if blocks and blocks[-1] == self.block:
            values[-1] = value
        else:
            blocks.append(self.block)
            values.append(value)

    def as_of(self, block: int) -> MemoryRows:
        return MemoryRows(self.items, block)

    def _value(self, series: _Series | None) -> Any:
        place = 0 if series is None else bisect_right(series[0], self.block)
        return None if series is None or place == 0 else series[1][place - 1]


class Ledger:
    """The one chain that many `MemoryChain` share. Blocks come by the running loop's clock once it is started."""

    def __init__(
        self, params: ChainParams, genesis: Sequence[GenesisNeuron], *, finality: int = FINALITY_BLOCKS
    ) -> None:
        self.params, self.finality = params, finality
        self._genesis_s: float | None = None
        self._rows = MemoryRows({}, 0)
        self._rosters: dict[int, Roster] = {}
        self.forks: list[Fork] = []
        self.stuck_at: int | None = None  # no block after this one becomes final, while it is set
        write_genesis(self._rows, genesis)

    def start_clock(self) -> None:
        """Make now the start of block 0; a clock that runs already is left alone."""
        if self._genesis_s is None:
            self._genesis_s = asyncio.get_running_loop().time()

    def head(self) -> int:
        if self._genesis_s is None:
            return 0
        # The nudge: a timer set for the start of a block must find that block, whatever the division rounds to.
        return int((asyncio.get_running_loop().time() - self._genesis_s) / self.params.block_s + 1e-9)

    async def reached(self, block: int) -> None:
        """Until `block` can be read."""
        while self.head() < block:
            started, now = self._genesis_s, asyncio.get_running_loop().time()
            wait_s = POLL_S if started is None else started + block * self.params.block_s - now
            await asyncio.sleep(max(wait_s, 1e-6))

    def rows(self, block: int) -> MemoryRows:
        """State as of a past block. ChainFault when it does not exist yet."""
        head = self.head()
        if not 0 <= block <= head:
            raise ChainFault(f"block {block} does not exist; the head is {head}")
        run_due_epochs(self._rows.as_of(head), self.params)
        return self._rows.as_of(block)

    def write(self, module: str, function: str, hotkey: str, args: Mapping[str, Any]) -> int:
        """Apply a call of `hotkey` in the next block; returns that block. ChainRefused as the real chain would."""
        rows = self._rows.as_of(self.head() + 1)
        run_due_epochs(rows, self.params)
        try:
            CALLS[module, function](rows, in_force(rows, self.params), hotkey, dict(args))
        except RefusedError as refusal:
            raise ChainRefused(str(refusal), bt.ChainError(str(refusal), refusal.name).code.value) from None
        return rows.block

    def fund(self, coldkey: str, tao: float) -> None:
        """Add money to a coldkey out of nothing, in the next block."""
        rows = self._rows.as_of(self.head() + 1)
        rows.put("balance", coldkey, rows.get("balance", coldkey, 0) + round(tao * RAO))

    def change(self, **changes: Any) -> None:
        """Change fields of ChainParams from the next block on."""
        rows = self._rows.as_of(self.head() + 1)
        run_due_epochs(rows, self.params)
        put_params(rows, self.params, changes)

    def params_at(self, block: int) -> ChainParams:
        return in_force(self.rows(block), self.params)

    def roster(self, block: int) -> Roster:
        """The same object for everybody who asks: past blocks never change."""
        if block not in self._rosters:
            self._rosters[block] = _read_roster(self.rows(block), block_hash(self.params.seed, block))
        return self._rosters[block]

    def final(self) -> int:
        """The newest final block."""
        final = max(0, self.head() - self.finality)
        return final if self.stuck_at is None else min(final, self.stuck_at)

    def roster_seen(self, hotkey: str, block: int) -> Roster:
        """The roster of a block as one client has it."""
        roster = self.roster(block)
        for fork in self.forks:
            if hotkey in fork.seen_by and block >= fork.first and self.head() < fork.until:
                return fork.instead_of(roster, self.roster(fork.since - 1))
        return roster

    @property
    def started(self) -> bool:
        return self._genesis_s is not None


async def _open_line() -> None:
    """A way to the chain without latency or trouble."""


class MemoryChain:
    """`chain.base.Chain` for one hotkey. `line` is awaited before every call: what it takes or raises, the call does.

    A write is applied `inclusion_s` after it was sent and returns when its block can be read.
    """

    def __init__(
        self,
        ledger: Ledger,
        hotkey: str,
        *,
        line: Callable[[], Awaitable[None]] = _open_line,
        inclusion_s: float = 0.0,
    ) -> None:
        self._ledger, self._hotkey, self._line, self._inclusion_s = ledger, hotkey, line, inclusion_s

    async def close(self) -> None:
        """Nothing is open."""

    async def head(self) -> Head:
        await self._line()
        return Head(self._ledger.head(), self._ledger.final())

    async def block_hash(self, number: int) -> bytes:
        await self._line()
        return self._ledger.roster_seen(self._hotkey, number).block.hash

    async def roster(self, block: int) -> Roster:
        await self._line()
        return self._ledger.roster_seen(self._hotkey, block)

    async def params(self) -> SubnetParams:
        await self._line()
        p = self._ledger.params_at(self._ledger.head())
        return SubnetParams(
            netuid=p.netuid,
            tempo=p.tempo,
            weights_rate_limit=p.weights_rate_limit,
            block_s=p.block_s,
            owner_hotkey=p.owner_hotkey,
            owner_coldkey=p.owner_coldkey,
            min_allowed_weights=p.min_allowed_weights,
            max_weight_limit=p.max_weights_limit,
            commit_reveal=p.commit_reveal,
            reveal_period=p.reveal_period,
            version_key=p.version_key,
            next_epoch_block=next_epoch_block(self._ledger.rows(self._ledger.head()), p.tempo),
            max_uids=p.max_uids,
        )

    async def weights(self, block: int) -> dict[int, dict[int, float]]:
        await self._line()
        stored = self._ledger.rows(block).scan("weights")
        totals = {uid: sum(value for _, value in pairs) for uid, pairs in stored.items()}
        return {
            int(uid): {target: value / totals[uid] for target, value in pairs} for uid, pairs in stored.items() if pairs
        }

    async def commit(self, fields: Sequence[Field], until: int | None = None) -> int:
        check_fields(fields)
        return await self._write(
            "Commitments", "set_commitment", {"info": {"fields": [encode_field(field) for field in fields]}}
        )

    async def serve(self, ip: str, port: int) -> None:
        await self._line()
        present = self._ledger.roster(self._ledger.head()).by_hotkey(self._hotkey)
        if present is not None and present.address == (ip, port):
            return
        address = ipaddress.ip_address(ip)
        args = {"version": 0, "ip": int(address), "port": port, "ip_type": address.version, "protocol": 4}
        await self._write("SubtensorModule", "serve_axon", {**args, "placeholder1": 0, "placeholder2": 0})

    async def set_weights(self, weights: Mapping[int, float], version_key: int) -> int:
        best = max(weights.values(), default=0.0)
        if best <= 0:
            raise ChainRefused("all weights are zero; nothing to set", "invalid_argument")
        scaled = {uid: round(weight / best * U16_MAX) for uid, weight in sorted(weights.items())}
        kept = {uid: value for uid, value in scaled.items() if value > 0}
        args = {"dests": list(kept), "weights": list(kept.values()), "version_key": version_key}
        if not self._ledger.params_at(self._ledger.head()).commit_reveal:
            return await self._write("SubtensorModule", "set_mechanism_weights", args)
        sealed = {"commit": "0x", "reveal_round": 0, "opening": args, "commit_reveal_version": COMMIT_REVEAL_VERSION}
        return await self._write("SubtensorModule", "commit_timelocked_mechanism_weights", sealed)

    async def _write(self, module: str, function: str, args: dict[str, Any]) -> int:
        await self._line()
        if self._inclusion_s:
            await asyncio.sleep(self._inclusion_s)
        block = self._ledger.write(module, function, self._hotkey, {"netuid": self._ledger.params.netuid, **args})
        if self._ledger.started:
            await self._ledger.reached(block)
        return block


def _read_roster(rows: MemoryRows, hash_: bytes) -> Roster:
    epoch = read_epoch(rows)
    return Roster(BlockRef(rows.block, hash_), tuple(_neuron(rows, epoch, row) for row in neurons(rows)))


def _neuron(rows: MemoryRows, epoch: EpochRow, row: NeuronRow) -> Neuron:
    """As `BittensorChain` reads it; a commitment older than the registration belongs to a former life: absent."""
    written, axon = rows.get("commitment", row.hotkey), rows.get("axon", row.hotkey)
    if written is not None and (written["block"] < row.registered or not written["info"]["fields"]):
        written = None
    return Neuron(
        uid=row.uid,
        hotkey=row.hotkey,
        public_key=hotkey_public_key(row.hotkey),
        stake=rows.get("stake", row.hotkey, 0) / RAO,
        may_validate=epoch.permits[row.uid],
        registered_block=row.registered,
        address=None if axon is None else (str(ipaddress.ip_address(axon["ip"])), axon["port"]),
        commitment=None if written is None else _commitment(written),
        commitment_block=None if written is None else written["block"],
        incentive=epoch.incentive[row.uid] / U16_MAX,
        dividends=epoch.dividends[row.uid] / U16_MAX,
        last_update=rows.get("last_update", str(row.uid), 0),
        coldkey=hotkey_public_key(row.coldkey),
    )


def _commitment(written: Mapping[str, Any]) -> Commitment | None:
    fields = parse_fields(written["info"]["fields"])
    return None if fields is None else decode_commitment(fields)
