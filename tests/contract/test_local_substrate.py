"""The local chain below the Chain protocol: what the SDK itself asks, registration, recycling, signatures."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import bittensor as bt
import pytest
from chain_rig import COLDKEY, NAMES, NETUID, SEED, VERSION_KEY, key, make_chain, reach, rig

from distributed_training.chain.keys import derive_coldkey, derive_keypair
from distributed_training.chain.local.genesis import fund, start_clock
from distributed_training.chain.local.register import register_local
from distributed_training.chain.local.substrate import LocalSubstrate
from distributed_training.errors import ChainRefused
from distributed_training.protocol.types import Field

HOTKEYS = [key(name).hotkey for name in NAMES]
REGISTER = bt.calls.SubtensorModule.burned_register


@asynccontextmanager
async def sdk(path: Path) -> AsyncIterator[bt.Client]:
    async with bt.Subtensor("local", substrate=cast(bt.Substrate, LocalSubstrate(path))) as client:
        yield client


async def test_every_read_a_neuron_makes_is_answered_by_the_sdk(tmp_path: Path) -> None:
    async with sdk(make_chain(tmp_path / "chain.sqlite", block_s=0.05, tempo=6)) as client:
        await client.execute(
            bt.SetWeights(NETUID, weights={3: 1.0, 4: 1.0}, version_key=VERSION_KEY), key("validator-0").keypair
        )
        start_clock(tmp_path / "chain.sqlite")
        event = await client.wait_for_epoch(NETUID, timeout=10)
        assert (event.block, event.previous) == (6, 0)

        graph = await client.subnets.metagraph(NETUID)
        assert graph is not None and graph.hotkeys == HOTKEYS and graph.last_step == 6
        assert (graph.name, graph.symbol, graph.price) == ("local", "α", 1.0)
        assert [n.uid for n in graph.validators] == [0, 1, 2]
        assert await client.subnets.metagraph(NETUID + 1) is None

        assert await client.neurons.uid(hotkey_ss58=HOTKEYS[3], netuid=NETUID) == 3
        assert await client.neurons.uid(hotkey_ss58=COLDKEY.ss58_address, netuid=NETUID) is None
        assert (await client.weights.weights(NETUID))[1] == {3: 0.5, 4: 0.5}
        assert await client.subnets.commitments(NETUID) == {}

        status = await client.epochs.epoch_status(netuid=NETUID)
        assert status["tempo"] == 6 and status["last_epoch_block"] + 6 == status["next_epoch_start_block"]
        assert await client.hyperparameters.weights_rate_limit(netuid=NETUID) == 3
        assert await client.hyperparameters.max_weight_limit(netuid=NETUID) == 65535
        assert await client.hyperparameters.min_allowed_weights(netuid=NETUID) == 1
        assert await client.hyperparameters.immunity_period(netuid=NETUID) == 4096
        assert await client.subnets.commit_reveal_enabled(netuid=NETUID) is False
        assert (await client.subnets.burn(netuid=NETUID)).tao == pytest.approx(0.1)
        assert (await client.balances.get(COLDKEY.ss58_address)).rao == 0

        info = await client.block_info(3)
        assert info is not None and info.number == 3 and info.hash == await client.query(("System", "BlockHash"), [3])
        assert await client.block_info(10_000) is None
        first = await client.block_info(1)
        assert first is not None and [e["call"]["call_function"] for e in first.extrinsics] == ["set_mechanism_weights"]
        header = await client.wait_for_block(timeout=5)
        assert header.number > event.block


@pytest.mark.parametrize(
    "question",
    [
        lambda client: client.query(("SubtensorModule", "NoSuchItem"), [NETUID]),
        lambda client: client.query_map(("SubtensorModule", "NoSuchMap"), [NETUID]),
        lambda client: client.runtime(("NoSuchApi", "get_it"), [NETUID]),
        lambda client: client.submit_call(bt.calls.System.remark(remark=b""), COLDKEY),
        lambda client: client.query(("SubtensorModule", "Tempo"), [NETUID], block=99),
    ],
)
async def test_what_the_local_chain_does_not_know_is_an_error_not_a_none(tmp_path: Path, question: Any) -> None:
    async with sdk(make_chain(tmp_path / "chain.sqlite")) as client:
        with pytest.raises(bt.ChainError):
            await question(client)


async def test_a_newcomer_buys_a_uid_and_may_take_part(tmp_path: Path) -> None:
    path, newcomer = make_chain(tmp_path / "chain.sqlite", block_s=0.05), key("extra")
    start_clock(path)
    async with sdk(path) as client:
        register = REGISTER(netuid=NETUID, hotkey=newcomer.hotkey)
        poor = await client.submit_call(register, COLDKEY, wait_for_finalization=False)
        assert poor.error is not None and poor.error.code is bt.ErrorCode.INSUFFICIENT_BALANCE
        fund(path, COLDKEY.ss58_address, 1.0)
        bought = await client.submit_call(register, COLDKEY, wait_for_finalization=False)
        assert bought.success
        again = await client.submit_call(register, COLDKEY, wait_for_finalization=False)
        assert again.error is not None and again.error.code is bt.ErrorCode.ALREADY_EXISTS
        elsewhere = await client.submit_call(REGISTER(netuid=99, hotkey=newcomer.hotkey), COLDKEY)
        assert elsewhere.error is not None and elsewhere.error.code is bt.ErrorCode.SUBNET_NOT_EXISTS
        assert (await client.balances.get(COLDKEY.ss58_address)).tao == pytest.approx(0.9)
    async with rig(path) as r:
        chain = await r.client("extra")
        block = await chain.commit([Field("Raw", b"x")])
        neuron = (await chain.roster(block)).neurons[5]
        assert neuron.hotkey == newcomer.hotkey and neuron.commitment_block == block > neuron.registered_block
        assert not neuron.may_validate and neuron.incentive == 0.0


async def test_register_local_makes_key_uid_and_stake_and_is_idempotent(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05, tempo=12)
    waiting = await register_local(path, tmp_path / "wallets", "local", "early")
    assert waiting.uid is None and not (await register_local(path, tmp_path / "wallets", "local", "early")).new
    start_clock(path)
    first = await register_local(path, tmp_path / "wallets", "local", "extra", stake=50.0)
    assert (first.uid, first.new) == (6, True)
    assert first.key.hotkey == derive_keypair(SEED, "extra").ss58_address
    second = await register_local(path, tmp_path / "wallets", "local", "extra")
    assert (second.uid, second.new) == (6, False)
    async with rig(path) as r:
        chain = await r.client("extra")
        epoch = ((await chain.head()).number // 12 + 1) * 12
        await reach(chain, epoch)
        neuron = (await chain.roster(epoch)).neurons[6]
        assert neuron.stake == 50.0 and neuron.may_validate


async def test_a_full_subnet_recycles_the_uid_that_earns_least(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite", block_s=0.05, tempo=3, max_uids=5, immunity_period=0)
    async with rig(path) as r:
        for name in ("validator-0", "validator-1"):
            await (await r.client(name)).set_weights({3: 1.0}, VERSION_KEY)
        loser = await r.client("miner-1")
        await loser.commit([Field("Raw", b"x")])
        await loser.serve("127.0.0.2", 9000)
        start_clock(path)
        await reach(loser, 3)
        taken = await register_local(path, tmp_path / "wallets", "local", "extra")
        assert taken.uid == 4
        roster = await loser.roster((await loser.head()).number)
        assert roster.by_hotkey(key("miner-1").hotkey) is None
        fresh = roster.neurons[4]
        assert (fresh.hotkey, fresh.address, fresh.commitment_block) == (key("extra").hotkey, None, None)
        assert roster.neurons[3].incentive == pytest.approx(1.0, abs=1e-3)
        with pytest.raises(ChainRefused) as refusal:
            await loser.commit([Field("Raw", b"x")])
        assert refusal.value.code == "not_authorized"
        # It comes back: what it committed in its former life does not count.
        again = await register_local(path, tmp_path / "wallets", "local", "miner-1")
        back = (await loser.roster((await loser.head()).number)).by_hotkey(key("miner-1").hotkey)
        assert again.new and back is not None and back.commitment_block is None


@dataclass
class Forger:
    """Claims one address, signs with another key."""

    ss58_address: str
    keypair: bt.Signer
    crypto_type: int = 1

    @property
    def public_key(self) -> bytes:
        return self.keypair.public_key

    def sign(self, payload: bytes) -> bytes:
        return self.keypair.sign(payload)


@dataclass
class Noise(Forger):
    """Claims an address and its public key, but cannot sign for it."""

    def sign(self, payload: bytes) -> bytes:
        return bytes(64)


async def test_a_call_counts_only_with_a_signature_of_the_address_it_names(tmp_path: Path) -> None:
    victim, thief = key("miner-0").keypair, key("miner-1").keypair
    call = bt.calls.Commitments.set_commitment(netuid=NETUID, info={"fields": [{"Raw1": "0x00"}]})
    async with sdk(make_chain(tmp_path / "chain.sqlite")) as client:
        for signer in (Forger(victim.ss58_address, thief), Noise(victim.ss58_address, victim)):
            result = await client.submit_call(call, signer, signer="hotkey")
            assert not result.success and result.block_hash is None
        assert (await client.submit_call(call, victim, signer="hotkey")).success


async def test_real_wallet_files_sign(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite")
    await register_local(path, tmp_path / "wallets", "local", "extra")
    wallet = bt.Wallet("local", "extra", path=str(tmp_path / "wallets"))
    assert wallet.coldkeypub.ss58_address == derive_coldkey(SEED, "local").ss58_address
    async with sdk(path) as client:
        assert (await client.execute(bt.ServeAxon(NETUID, "127.0.0.2", 9000), wallet)).success


async def test_the_blocking_client_works_too(tmp_path: Path) -> None:
    path = make_chain(tmp_path / "chain.sqlite")

    def read() -> tuple[int, int]:
        client = bt.Subtensor("local", substrate=cast(bt.Substrate, LocalSubstrate(path)))
        try:
            graph = client.subnets.metagraph(NETUID)
            return client.block, 0 if graph is None else len(graph)
        finally:
            client.close()

    assert await asyncio.to_thread(read) == (0, len(NAMES))


SCRIPT = Path(__file__).parents[2] / "scripts" / "register.py"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_register_script_prints_the_uid_or_one_line_of_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_clock(make_chain(tmp_path / "chain.sqlite", block_s=0.05))
    done = run_script("--run-dir", str(tmp_path), "--wallet.hotkey", "extra")
    assert (done.returncode, done.stderr) == (0, "") and "has now uid 5" in done.stdout
    assert runpy.run_path(str(SCRIPT))["main"](["--run-dir", str(tmp_path), "--wallet.hotkey", "extra"]) == 0
    assert "had already uid 5" in capsys.readouterr().out
    wrong = run_script("--run-dir", str(tmp_path / "nowhere"), "--wallet.hotkey", "extra")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "--run-dir: expected a folder" in wrong.stderr
