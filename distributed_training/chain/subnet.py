"""What a chain says about a subnet, for people: its owner, whether it pays, what a place on it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bittensor as bt

from distributed_training.chain.answers import guarded
from distributed_training.chain.fields import parse_fields
from distributed_training.chain.line import READ_TIMEOUT_S
from distributed_training.errors import ChainFault, ChainUnreachable, ConfigError
from distributed_training.protocol.commitments import decode_commitment

RAO = 10**9
WHOLE_CHAIN_S = 600.0  # for what is read of all subnets


def _share(value: int) -> float:
    return value / 65535


def _fixed(value: Any) -> float:
    """U64F64, as the SDK decodes it."""
    return (value["bits"] if isinstance(value, dict) else value) / 2**64


_MODULE = bt.storage.SubtensorModule
# One storage item each, by netuid. Runtimes come and go with them, so each is asked for by itself.
_ITEMS: dict[str, tuple[bt.storage.Item, Callable[[Any], Any]]] = {
    "weights_rate_limit": (_MODULE.WeightsSetRateLimit, int),
    "immunity_blocks": (_MODULE.ImmunityPeriod, int),
    "commit_reveal": (_MODULE.CommitRevealWeightsEnabled, bool),
    "reveal_epochs": (_MODULE.RevealPeriodEpochs, int),
    "emission_enabled": (_MODULE.SubnetEmissionEnabled, bool),
    "started": (_MODULE.SubtokenEnabled, bool),
    "registration_open": (_MODULE.NetworkRegistrationAllowed, bool),
    "registered_block": (_MODULE.NetworkRegisteredAt, int),
    "price_rao": (_MODULE.Burn, int),
    "lock_share": (_MODULE.CollateralLockShare, _share),
    "drain_ratio": (_MODULE.CollateralDrainRatio, _fixed),
}
TESTED_SPECS = {293, 318, 461, 462}  # of the chain's runtime: 293 was run, of the others the descriptions are tested


def untested(spec: int) -> str:
    """What is to be said of a runtime that is newer than what was tested; of others nothing."""
    if spec <= max(TESTED_SPECS):
        return ""
    return (
        f"the chain runs runtime {spec}, this release was tested with {max(TESTED_SPECS)}: what it reads or "
        "writes may fail; look for a newer release"
    )


@dataclass(frozen=True, slots=True)
class SubnetFacts:
    """As of the chain's head. None: this chain does not say, because its runtime lacks the item."""

    netuid: int
    block: int
    block_s: float
    name: str
    owner_hotkey: str
    owner_coldkey: str
    tempo: int  # blocks of an epoch
    num_uids: int
    max_uids: int
    commitment_bytes: int | None  # a hotkey may write in an epoch
    weights_rate_limit: int | None  # blocks between two weight sets of a hotkey
    immunity_blocks: int | None  # in which a fresh uid is not replaced
    commit_reveal: bool | None  # weights count only once they are revealed,
    reveal_epochs: int | None  # so many epochs later
    emission_enabled: bool | None
    started: bool | None  # the owner's start call is done
    registration_open: bool | None
    registered_block: int | None  # of the subnet
    start_delay: int | None  # blocks from then on in which no start call is accepted
    price_rao: int | None  # of a registration, burned part and collateral together
    lock_share: float | None  # of the price: locked as collateral; the rest is burned
    drain_ratio: float | None  # alpha of collateral that unlocks per alpha the hotkey earns
    spec_version: int  # of the chain's runtime
    timestamp_s: float | None  # Unix, of the head; None for the first block too
    collateral: dict[int, float] | None  # alpha locked by uid

    @property
    def price_tao(self) -> float | None:
        return None if self.price_rao is None else self.price_rao / RAO

    @property
    def untested(self) -> str:
        return untested(self.spec_version)

    @property
    def pays(self) -> str:
        """Is anybody paid here, in words; and if not, why not. A subnet with closed registration gets nothing."""
        known = (
            (self.emission_enabled, "its emission is not enabled (the chain's root does that)"),
            (self.started, f"its owner's start call is not done{self._start_when}"),
            (self.registration_open, "its registration is closed"),
        )
        wrong = [why for value, why in known if value is False]
        if wrong:
            return f"it pays NOBODY: {', '.join(wrong)}"
        return "it pays" if all(value for value, _ in known) else "whether it pays, this chain does not tell"

    @property
    def _start_when(self) -> str:
        if self.registered_block is None or self.start_delay is None:
            return ""
        block = self.registered_block + self.start_delay
        days = max(0, block - self.block) * self.block_s / 86400
        return f" (accepted from block {block} on, " + (f"in {days:.1f} days)" if days else "so by now)")

    @property
    def price(self) -> str:
        """What a registration costs now, in words."""
        if self.price_tao is None:
            return "a price that this chain does not tell"
        whole = f"{self.price_tao:g} TAO"
        if not self.lock_share:
            return f"{whole}, all of it burned" if self.lock_share == 0 else whole
        locked = self.price_tao * self.lock_share
        unlocks = "" if self.drain_ratio is None else f" ({self.drain_ratio:g} alpha unlocked per alpha it earns)"
        burned = f"{self.price_tao - locked:g} TAO burned"
        return f"{whole}: {burned}, {locked:g} TAO locked as collateral of the hotkey{unlocks}"


async def subnet_facts(client: bt.Client, netuid: int) -> SubnetFacts:
    """Asks the chain behind `client`. Raises ConfigError where there is no such subnet, ChainFault."""
    graph = await guarded(client.subnets.metagraph(netuid, commitments=False), READ_TIMEOUT_S)
    if graph is None:
        raise ConfigError(f"--netuid {netuid}: no such subnet on this chain")
    space, start_delay, now_ms, *values = await asyncio.gather(
        _item(client, bt.storage.Commitments.MaxSpace, []),
        _item(client, _MODULE.StartCallDelay, []),
        _item(client, bt.storage.Timestamp.Now, []),
        *(_item(client, item, [netuid]) for item, _ in _ITEMS.values()),
    )
    locked = {n.uid: n.collateral_locked.rao / RAO for n in graph.neurons if n.collateral_locked is not None}
    found = zip(_ITEMS, values, strict=True)
    return SubnetFacts(
        netuid=netuid,
        block=graph.block,
        block_s=await guarded(client.block_time(), READ_TIMEOUT_S),
        name=graph.name,
        owner_hotkey=graph.owner_hotkey,
        owner_coldkey=graph.owner_coldkey,
        tempo=graph.tempo,
        num_uids=graph.num_uids,
        max_uids=graph.max_uids,
        commitment_bytes=space,
        start_delay=None if start_delay is None else int(start_delay),
        spec_version=await guarded(client.spec_version(), READ_TIMEOUT_S),
        timestamp_s=int(now_ms) / 1000 if now_ms else None,
        collateral=locked if len(locked) == len(graph.neurons) else None,
        **{name: None if value is None else _ITEMS[name][1](value) for name, value in found},
    )


async def talking(client: bt.Client) -> list[int]:
    """Subnets on which some hotkey's commitment is one of ours; reads those of the whole chain, a hundred at a time."""
    rows = await client.query_map(bt.storage.Commitments.CommitmentOf[:2])
    return sorted({int(key[0]) for key, value in rows if _is_ours(value)})


def _is_ours(value: Any) -> bool:
    fields = parse_fields(value["info"]["fields"])
    return fields is not None and decode_commitment(fields) is not None


async def _item(client: bt.Client, item: bt.storage.Item, key: list[int]) -> Any:
    """None where the runtime has no such item."""
    try:
        return await guarded(client.query(item[:2], key), READ_TIMEOUT_S)
    except ChainUnreachable:
        raise
    except ChainFault:
        return None
