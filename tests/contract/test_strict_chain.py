"""The local chain is as strict as the real one: what it refuses, pays, hides and forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import bittensor as bt
import pytest
from chain_rig import COLDKEY, NETUID, SEED, VERSION_KEY, Rig, genesis, key, make_chain, reach, rig

from distributed_training.chain.local.genesis import change_params, fund, rewind, start_clock
from distributed_training.chain.local.store import ChainParams, block_hash
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.chain.memory import Ledger
from distributed_training.errors import ChainRefused, ConfigError
from distributed_training.protocol.types import Field

SUBTENSOR = "SubtensorModule"
CALLS = bt.calls.SubtensorModule


@asynccontextmanager
async def sdk(path: Path) -> AsyncIterator[bt.Client]:
    async with bt.Subtensor("local", substrate=cast(bt.Substrate, LocalSubstrate(path))) as client:
        yield client


async def test_what_people_ask_about_a_subnet_is_answered_in_the_real_shapes(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", collateral_share=13107, min_allowed_weights=2, serving_rate_limit=50)

    async def item(client: bt.Client, name: str) -> Any:
        return await client.query((SUBTENSOR, name), [NETUID])

    async with sdk(path) as client:
        assert await client.hyperparameters.subnet_emission_enabled(netuid=NETUID) == 1
        assert await client.hyperparameters.reveal_period(netuid=NETUID) == 1
        policy = await client.collateral.collateral_policy(netuid=NETUID)
        assert (policy["lock_share"], policy["drain_ratio"]) == (0.2, 1.0)
        graph = await client.subnets.metagraph(NETUID)
        assert graph is not None and graph.neurons[3].collateral_locked is not None
        assert await client.collateral.subnet_collateral(netuid=NETUID) == []

        assert await client.query(("Commitments", "MaxSpace")) == 3100
        assert (await client.submit_call(commitment(2), key("miner-0").keypair, signer="hotkey")).success
        change_params(path, started=False, registration_allowed=False, emission_enabled=False, spec_version=481)
        start_clock(path)
        await client.wait_for_block(2, timeout=5)
        closed = ("SubnetEmissionEnabled", "NetworkRegistrationAllowed", "SubtokenEnabled")
        assert [await item(client, name) for name in closed] == [False, False, False]
        assert await client.spec_version() == 481
        ((place, written),) = await client.query_map(("Commitments", "CommitmentOf"))
        assert place == (NETUID, key("miner-0").hotkey) and written["info"]["fields"] == [{"Raw2": "0x0000"}]
        assert await client.query((SUBTENSOR, "NetworkRegistrationAllowed"), [NETUID], block=0) is True


async def test_who_registered_where_a_part_is_locked_can_see_it(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05, collateral_share=13107)
    fund(path, COLDKEY.ss58_address, 1.0)
    async with sdk(path) as client:
        assert (await client.submit_call(register("extra"), COLDKEY, signer="coldkey")).success
        start_clock(path)
        await client.wait_for_block(1, timeout=5)
        own = await client.collateral.miner_collateral(netuid=NETUID, hotkey_ss58=key("extra").hotkey)
        (listed,) = await client.collateral.subnet_collateral(netuid=NETUID)
        assert (
            own is not None and own["locked_alpha"].alpha == pytest.approx(0.02) and own["coldkey"] == listed["coldkey"]
        )
        graph = await client.subnets.metagraph(NETUID)
        assert graph is not None and graph.neurons[5].collateral_locked == listed["locked_alpha"]
        assert (await client.balances.get(COLDKEY.ss58_address)).tao == pytest.approx(0.9)


def weights(dests: list[int], values: list[int], version_key: int = VERSION_KEY) -> Any:
    return CALLS.set_mechanism_weights(netuid=NETUID, mecid=0, dests=dests, weights=values, version_key=version_key)


def sealed(version: int = 4) -> Any:
    return CALLS.commit_timelocked_mechanism_weights(
        netuid=NETUID, mecid=0, commit=b"shut", reveal_round=1, commit_reveal_version=version
    )


def commitment(size: int) -> Any:
    return bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{f"Raw{size}": "0x" + "00" * size}]})


def axon(ip: int, port: int = 9000, ip_type: int = 4) -> Any:
    return CALLS.serve_axon(
        netuid=NETUID, version=0, ip=ip, port=port, ip_type=ip_type, protocol=4, placeholder1=0, placeholder2=0
    )


def register(name: str, netuid: int = NETUID) -> Any:
    return CALLS.burned_register(netuid=netuid, hotkey=key(name).hotkey)


PUBLIC, OPEN = 0x0A000001, weights([3], [1])
POOL = "pool"  # the chain's pool says no: the call gets into no block
RICH, CLOSED = {"burn_rao": 0}, {"burn_rao": 0, "registration_allowed": False}
UNLIMITED = {"commit_reveal": True, "rate_limit": 0}
REFUSALS: list[tuple[str, str, Any, str, str, dict[str, Any]]] = [
    # who signs, what it did before, what it does now, the error, its code (and where), the chain's settings
    ("stranger", "", OPEN, "HotKeyNotRegisteredInSubNet", "not_registered", {}),
    ("miner-0", "", weights([3, 4], [1, 1]), "NeuronNoValidatorPermit", "not_authorized", {}),
    ("validator-1", "", OPEN, "StakeAmountTooLow", "limit_exceeded pool", {"stake_threshold": 200 * 10**9}),
    ("validator-0", "weights", OPEN, "RateLimitExceeded", "rate_limited pool", {}),
    ("validator-0", "", weights([3], [1], 2), "IncorrectWeightVersionKey", "invalid_argument", {}),
    ("validator-0", "", weights([3], [1, 1]), "WeightVecNotEqualSize", "invalid_argument", {}),
    ("validator-0", "", weights([3] * 6, [1] * 6), "UidsLengthExceedUidsInSubNet", "limit_exceeded", {}),
    ("validator-0", "", weights([3, 3], [1, 1]), "DuplicateUids", "invalid_argument", {}),
    ("validator-0", "", weights([3, 5], [1, 1]), "UidVecContainInvalidOne", "invalid_argument", {}),
    ("validator-0", "", OPEN, "WeightVecLengthIsLow", "invalid_argument", {"min_allowed_weights": 2}),
    ("validator-0", "", weights([3, 4], [2, 1]), "MaxWeightExceeded", "limit_exceeded", {"max_weights_limit": 40_000}),
    ("validator-0", "", OPEN, "CommitRevealEnabled", "disabled", {"commit_reveal": True}),
    ("validator-0", "", sealed(), "CommitRevealDisabled", "disabled", {}),
    ("validator-0", "", sealed(3), "IncorrectCommitRevealVersion", "invalid_argument", {"commit_reveal": True}),
    ("validator-0", "sealed", sealed(), "RateLimitExceeded", "rate_limited pool", {"commit_reveal": True}),
    ("validator-0", "ten", sealed(), "TooManyUnrevealedCommits", "limit_exceeded", UNLIMITED),
    ("stranger", "", commitment(1), "AccountNotAllowedCommit", "not_authorized", {}),
    ("miner-0", "quota", commitment(1), "SpaceLimitExceeded", "limit_exceeded", {}),
    ("stranger", "", axon(PUBLIC), "HotKeyNotRegisteredInNetwork", "not_registered pool", {}),
    ("miner-0", "", axon(PUBLIC, ip_type=5), "BadRequest", "invalid_argument pool", {}),
    ("miner-0", "", axon(0x7F000001), "InvalidIpAddress", "invalid_argument pool", {}),
    ("miner-0", "", axon(1 << 40), "InvalidIpAddress", "invalid_argument pool", {}),
    ("miner-0", "axon", axon(PUBLIC), "ServingRateLimitExceeded", "rate_limited pool", {"serving_rate_limit": 50}),
    ("miner-0", "", axon(PUBLIC, port=0), "InvalidPort", "invalid_argument pool", {}),
    ("local", "", register("miner-0"), "HotKeyAlreadyRegisteredInSubNet", "already_exists", RICH),
    ("local", "", register("extra"), "SubNetRegistrationDisabled", "disabled", CLOSED),
    ("local", "", register("extra"), "NotEnoughBalanceToStake", "insufficient_balance", {}),
    ("local", "", register("extra", 99), "SubnetNotExists", "subnet_not_exists", RICH),
]  # fmt: skip
EARLIER = {
    "weights": [OPEN], "sealed": [sealed()], "ten": [sealed()] * 10, "axon": [axon(PUBLIC)],
    "quota": [commitment(128)] * 24, "": [],
}  # fmt: skip


@pytest.mark.parametrize(("who", "before", "call", "name", "code", "settings"), REFUSALS, ids=[r[3] for r in REFUSALS])
async def test_a_mistake_is_refused_by_the_chains_own_name(
    tmp_path: Path, who: str, before: str, call: Any, name: str, code: str, settings: dict[str, Any]
) -> None:
    path = make_chain(tmp_path / "chain.sqlite", **settings)
    signer = COLDKEY if who == "local" else key(who).keypair
    async with sdk(path) as client:
        for earlier in EARLIER[before]:
            assert (await client.submit_call(earlier, signer, signer="hotkey")).success
        result = await client.submit_call(call, signer, signer="hotkey")
    error = result.error
    assert error is not None and (error.name, error.code.value) == (name, code.removesuffix(" pool"))
    nowhere = code.endswith(" pool")
    assert (result.block_hash is None, result.extrinsic_id is None) == (nowhere, nowhere)


@asynccontextmanager
async def ledger() -> AsyncIterator[Rig]:
    params = ChainParams(SEED, 0.05, NETUID, 12, 3, VERSION_KEY, 8, 64, 0, 4096, 0, key("owner").hotkey, "cold")
    yield Rig(None, Ledger(replace(params, commit_reveal=True), genesis()))


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_sealed_weights_are_pending_until_their_epoch_and_count_for_the_rate_limit(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "chain.sqlite"
    if kind == "file":
        make_chain(path, block_s=0.05, tempo=12, commit_reveal=True)
    async with ledger() if kind == "memory" else rig(path) as r:
        validator = await r.client("validator-0")
        sent = await validator.set_weights({3: 1.0, 4: 3.0}, VERSION_KEY)
        r.start_clock()
        await reach(validator, 2)
        with pytest.raises(ChainRefused) as refusal:
            await validator.set_weights({3: 1.0}, VERSION_KEY)
        assert refusal.value.code == "rate_limited"
        await reach(validator, 12)
        assert (await validator.roster(2)).neurons[1].last_update == sent == 1
        assert await validator.weights(11) == {}
        assert (await validator.weights(12))[1] == pytest.approx({3: 0.25, 4: 0.75}, abs=1e-4)
        assert (await validator.roster(12)).neurons[4].incentive == pytest.approx(0.75, abs=1e-3)
        if kind == "file":
            async with sdk(path) as client:
                pending = await (await client.at(11)).weights.timelocked_weight_commits(NETUID)
                assert [(c["hotkey"], c["commit_block"]) for c in pending[0]] == [(key("validator-0").hotkey, 1)]
                assert "opening" not in str(await client.block_info(1))
                assert await client.weights.timelocked_weight_commits(NETUID) == {}


async def test_a_ciphertext_that_nobody_here_sealed_is_never_shown(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05, tempo=4, commit_reveal=True)
    async with sdk(path) as client:
        assert (await client.submit_call(sealed(), key("validator-0").keypair, signer="hotkey")).success
        start_clock(path)
        await client.wait_for_block(4, timeout=5)
        assert await client.weights.weights(NETUID) == {}
        assert list(await client.weights.timelocked_weight_commits(NETUID)) == [0]
        await client.wait_for_block(8, timeout=5)
        assert await client.weights.timelocked_weight_commits(NETUID) == {}


async def test_a_chain_that_is_taken_back_loses_writes_and_gives_other_hashes(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05)
    async with rig(path) as r, sdk(path) as client:
        miner, stream = await r.client("miner-0"), client.blocks()
        start_clock(path)
        await reach(miner, 8)
        block = await miner.commit([Field("Raw", b"x")])
        await reach(miner, block + 1)
        kept, gone = await miner.block_hash(block - 1), await miner.block_hash(block)
        rewind(path, block - 1)
        while await LocalSubstrate(path).block_number() < block:  # noqa: ASYNC110 (a client's head never falls back)
            await asyncio.sleep(0.01)
        roster = await miner.roster(block)
        assert roster.neurons[3].commitment_block is None and roster.block.hash != gone
        assert await miner.block_hash(block - 1) == kept
        with pytest.raises(bt.ChainError):
            await LocalSubstrate(path).query(SUBTENSOR, "Tempo", [NETUID], "0x" + gone.hex())
        while (await anext(stream)).number < block:
            pass

        rewind(path, 0)  # restarted from its genesis
        assert (await anext(stream)).number < block
        assert await miner.commit([Field("Raw", b"y")]) < block
        assert await miner.block_hash(0) == block_hash(SEED, 0)
    with pytest.raises(ConfigError, match="expected a block in"):
        rewind(path, 10_000)
