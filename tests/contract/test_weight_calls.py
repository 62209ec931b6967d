"""Weights through the real SDK on a runtime with limits, with sealed weights, and on one that is older than the SDK."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import bittensor as bt
import pytest
from bittensor._transport.errors import StorageFunctionNotFound
from chain_rig import NETUID, VERSION_KEY, genesis, key, make_chain, memory_rig, reach

from distributed_training.chain.base import Chain
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.local.genesis import start_clock
from distributed_training.chain.local.substrate import LocalSubstrate, failure
from distributed_training.chain.memory import Ledger
from distributed_training.metrics.base import Metrics
from distributed_training.protocol.observed import ScoreCard
from distributed_training.protocol.rules.weights import U16_MAX, u16_weights
from distributed_training.protocol.sections import ScoringSection
from distributed_training.roles.auditing.weights import WeightSetter
from distributed_training.roles.parts import Parts
from distributed_training.simulation.loop import run

LIMIT = 30000
SCORING = ScoringSection(
    vesting_rounds=24, audit_half_life=50.0, integrity_half_life=6.0, integrity_floor=0.5, soft_fail_weight=10.0,
    penalty_rounds=50, goodput_required=1000.0, goodput_probes=8, bandwidth_share=0.25, cutoff=0.01, burn_share=0.25,
)  # fmt: skip
MINERS = ((0, "miner-0"), (1, "miner-1"))


class Limited(LocalSubstrate):
    """Refuses rows with a share above LIMIT, as the pallet does: in its fixed point, after rounding to u16."""

    sent: list[str]

    async def query(self, module: str, storage_function: str, *args: Any, **more: Any) -> Any:
        if storage_function == "MaxWeightsLimit":
            return LIMIT
        return await super().query(module, storage_function, *args, **more)

    async def submit(self, call: Any, keypair: Any, **more: Any) -> bt.ExtrinsicResult:
        values = call.params["weights"]
        if (max(values) << 32) // sum(values) > (LIMIT << 32) // U16_MAX:
            return failure("MaxWeightExceeded", "a share is above the limit")
        return await super().submit(call, keypair, **more)


class Old(LocalSubstrate):
    """What spec 293 answers: no mechanisms, no epoch consensus, no stateful epochs; `lacks` are its missing calls."""

    lacks: tuple[str, ...] = ("set_mechanism_weights",)

    async def query(self, module: str, storage_function: str, *args: Any, **more: Any) -> Any:
        if storage_function == "SubnetEpochConsensus":
            raise StorageFunctionNotFound("storage function SubtensorModule.SubnetEpochConsensus not found")
        return await super().query(module, storage_function, *args, **more)

    async def runtime_call(self, api: str, method: str, *args: Any, **more: Any) -> Any:
        if method == "get_next_epoch_start_block":
            raise ValueError(f"Runtime API Call '{api}.{method}' not found in registry")
        answer = await super().runtime_call(api, method, *args, **more)
        return {k: v for k, v in answer.items() if k != "commit_reveal_period"} if method == "get_metagraph" else answer

    async def compose(self, call: Any) -> Any:
        if call.function in self.lacks:
            raise ValueError(f"call {call.module}.{call.function} not found")
        if call.function == "set_weights":
            call = call._replace(function="set_mechanism_weights", params={**call.params, "mecid": 0})
        return await super().compose(call)


class LessOld(Old):
    lacks = ("set_weights",)


async def connect(path: Path, kind: type[LocalSubstrate]) -> BittensorChain:
    return await BittensorChain.connect(
        netuid=NETUID,
        network="local",
        endpoint=None,
        signer=key("validator-0"),
        cache_dir=path.parent,
        substrate=cast(bt.Substrate, kind(path)),
    )


async def test_a_row_that_keeps_the_limit_gets_through_the_sdk_as_it_is(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.02)
    chain = await connect(path, Limited)
    start_clock(path)
    row = u16_weights({0: 0.7, 3: 0.2, 4: 0.1}, LIMIT)
    block = await chain.set_weights(row, VERSION_KEY)
    shown = (await chain.weights(block))[1]
    assert shown == {uid: value / sum(row.values()) for uid, value in row.items()}
    await chain.close()


@pytest.mark.parametrize("kind", [Old, LessOld])
async def test_a_runtime_older_than_the_sdk_takes_the_raw_call_with_one_warning(
    tmp_path: Path, kind: type[Old], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.02, tempo=30)
    chain = await connect(path, kind)
    start_clock(path)
    row = {3: U16_MAX, 4: 21845}
    block = await chain.set_weights(row, VERSION_KEY)
    await reach(chain, block + 3)
    block = await chain.set_weights(row, VERSION_KEY)
    assert (await chain.weights(block))[1] == {3: 0.75, 4: 0.25}
    params = await chain.params()
    assert params == replace(params, tempo=30, min_allowed_weights=1, max_weight_limit=U16_MAX, reveal_period=1)
    assert params.next_epoch_block is not None and (params.next_epoch_block + NETUID + 1) % 31 == 0
    said = [text for text in caplog.messages if "this runtime" in text]
    assert len(said) == 2 and "SubnetEpochConsensus" in said[0] and "raw calls" in said[0]
    assert said[1] == "this runtime does not say commit_reveal_period: the chain's defaults are taken"
    await chain.close()


class Kept:
    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []

    def write(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None: ...


async def set_and_wait(chain: Chain, block_s: float, until: int) -> list[Mapping[str, Any]]:
    """The events of a validator that has scored one round, until block `until` is final."""
    kept = Kept()
    parts = SimpleNamespace(
        manifest=SimpleNamespace(scoring=SCORING, version_key=VERSION_KEY),
        params=await chain.params(),
        chain=chain,
        clock=BlockClock(chain, block_s),
        signer=key("validator-0"),
        metrics=Metrics([kept], role="validator", uid=1, threads=False),
    )
    polling = asyncio.create_task(parts.clock.run())
    setter = WeightSetter(cast(Parts, parts))
    setter.offer(
        0,
        {
            key(n).hotkey: ScoreCard(key(n).hotkey, 0, 3 + i, (), 0.1, 1.0, 0.0, 1.0, (), True, 0, "", "")
            for i, n in MINERS
        },
    )
    setter.begin()
    await parts.clock.final(until)
    await setter.cancel()
    polling.cancel()
    return kept.events


async def test_sealed_weights_are_there_after_their_reveal_and_that_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05, tempo=14, commit_reveal=True)
    chain = await connect(path, LocalSubstrate)
    start_clock(path)
    (event,) = await set_and_wait(chain, 0.05, 18)
    assert event["event"] == "weights" and event["block"] < 14
    assert (await chain.weights(13)).get(1) is None
    assert (await chain.weights(14))[1] == pytest.approx({0: 0.25, 3: 0.375, 4: 0.375}, abs=1e-4)
    assert f"round 0: the weights of block {event['block']} are on chain as sent" in caplog.messages
    await chain.close()


def test_a_reveal_that_never_comes_is_an_alarm() -> None:
    async def main() -> list[Mapping[str, Any]]:
        async with memory_rig(tempo=14, block_s=1.0) as r:
            assert r.ledger is not None
            params = replace(r.ledger.params, commit_reveal=True, beacon=False)
            r.ledger = Ledger(params, genesis())
            r.start_clock()
            return await set_and_wait(await r.client("validator-0"), 1.0, 30)

    weights, fault = run(main())
    assert (weights["event"], fault["what"]) == ("weights", "weights")
    assert f"committed in block {weights['block']} were not revealed by block 27 (there is no row)" in fault["detail"]
