"""What people are told of a subnet: every value from the chain, None where its runtime has no such item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import bittensor as bt
import pytest

from distributed_training.chain.keys import derive_coldkey, derive_keypair
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.chain.subnet import SubnetFacts, subnet_facts
from distributed_training.errors import ChainUnreachable, ConfigError

OWNER, COLD = derive_keypair(1, "owner").ss58_address, derive_coldkey(1, "local").ss58_address


class Runtime(LocalSubstrate):
    """The local chain as another runtime: storage items it has besides, or has not (the exception)."""

    def __init__(self, path: Path, items: dict[str, Any]) -> None:
        super().__init__(path)
        self.items = items

    async def query(
        self, module: str, storage_function: str, params: list[Any] | None = None, block_hash: str | None = None
    ) -> Any:
        if storage_function not in self.items:
            return await super().query(module, storage_function, params, block_hash)
        answer = self.items[storage_function]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def facts(tmp_path: Path, items: dict[str, Any], netuid: int = 7) -> SubnetFacts:
    path = tmp_path / "chain.sqlite"
    if not path.exists():
        create_chain(
            path, seed=1, block_s=12.0, netuid=7, tempo=360, weights_rate_limit=100, version_key=0, max_uids=64,
            owner_hotkey=OWNER, owner_coldkey=COLD, neurons=[GenesisNeuron(OWNER, COLD, 0.0, False)],
        )  # fmt: skip
    substrate = cast(bt.Substrate, Runtime(path, items))
    async with bt.Client("local", substrate=substrate) as client:
        return await subnet_facts(client, netuid)


MODERN = {
    "NetworkRegistrationAllowed": True,
    "SubtokenEnabled": True,
    "SubnetEmissionEnabled": True,
    "Burn": 500_000_000,
    "CollateralLockShare": 13107,
    "CollateralDrainRatio": {"bits": 1 << 63},
    "MaxSpace": 3100,
}


async def test_every_fact_is_the_chains_own(tmp_path: Path) -> None:
    found = await facts(tmp_path, MODERN)
    assert (found.owner_hotkey, found.owner_coldkey, found.tempo, found.max_uids) == (OWNER, COLD, 360, 64)
    assert (found.num_uids, found.weights_rate_limit, found.immunity_blocks) == (1, 100, 4096)
    assert (found.block_s, found.commitment_bytes, found.pays) == (12.0, 3100, "it pays")
    assert found.price == (
        "0.5 TAO: 0.4 TAO burned, 0.1 TAO locked as collateral of the hotkey (0.5 alpha unlocked per alpha it earns)"
    )
    assert (found.spec_version, found.untested, found.collateral) == (0, "", {0: 0.0})
    for flag in ("NetworkRegistrationAllowed", "SubtokenEnabled", "SubnetEmissionEnabled"):
        assert "pays NOBODY" in (await facts(tmp_path, MODERN | {flag: False})).pays
    with pytest.raises(ConfigError, match="--netuid 8: no such subnet on this chain"):
        await facts(tmp_path, MODERN, netuid=8)


async def test_what_a_runtime_has_not_is_not_known_and_a_chain_that_is_away_is_no_old_runtime(tmp_path: Path) -> None:
    lacks = {name: ValueError(f"no storage function {name}") for name in MODERN}
    found = await facts(tmp_path, lacks)
    assert (found.price_rao, found.lock_share, found.drain_ratio, found.commitment_bytes) == (None, None, None, None)
    assert (found.pays[:8], found.price) == ("whether ", "a price that this chain does not tell")
    assert replace(found, price_rao=10**8).price == "0.1 TAO"
    assert replace(found, price_rao=10**8, lock_share=0.0).price == "0.1 TAO, all of it burned"
    with pytest.raises(ChainUnreachable):
        await facts(tmp_path, {"Burn": OSError("connection lost")})
