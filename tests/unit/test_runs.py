"""What a chain offers, as people see it; the chain asked without a wallet."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from samples import RUN

from distributed_training.access import connect
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair, write_wallet
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain, start_clock
from distributed_training.chain.local.substrate import local_substrate
from distributed_training.errors import ConfigError
from distributed_training.protocol.commitments import encode_commitment
from distributed_training.protocol.types import Commitment, Role
from distributed_training.runs import main
from distributed_training.settings.config import NodeConfig

COLD = derive_coldkey(1, "local").ss58_address
NAMES = {"owner": Role.OWNER, "validator-0": Role.VALIDATOR, "miner-0": Role.MINER, "miner-1": Role.MINER}


def key(name: str) -> LocalKey:
    return LocalKey(derive_keypair(1, name))


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The owner's hotkey and a validator are there; nobody said anything yet."""
    path = tmp_path / "chain.sqlite"
    neurons = [GenesisNeuron(key(n).hotkey, COLD, 500.0 * (n == "validator-0"), n == "validator-0") for n in NAMES]
    create_chain(
        path, seed=1, block_s=0.1, netuid=7, tempo=360, weights_rate_limit=20, version_key=1, max_uids=8,
        owner_hotkey=key("owner").hotkey, owner_coldkey=COLD, neurons=neurons,
    )  # fmt: skip
    return path


async def say(chain: Path, name: str, commitment: Commitment) -> None:
    client = await BittensorChain.connect(
        netuid=7, network="local", endpoint=None, signer=key(name), cache_dir=chain.parent,
        substrate=local_substrate(chain),
    )  # fmt: skip
    await client.commit(encode_commitment(commitment))
    await client.close()


def ask(chain: Path, *flags: str) -> int:
    return main(["--subtensor.chain_endpoint", f"file:{chain}", *flags])


def test_a_chain_where_nobody_said_anything(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(chain) == 0
    assert capsys.readouterr().out == "no hotkey there announces a run or is in one\n"
    assert ask(chain, "--netuid", "7") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"subnet 7 (local), owner {key('owner').hotkey}: it pays"
    assert lines[1:] == [
        "  a place costs 0.1 TAO, all of it burned; 4 of 8 are taken",
        "no hotkey there announces a run or is in one",
    ]
    with pytest.raises(ConfigError, match="--netuid 8: no such subnet on this chain"):
        ask(chain, "--netuid", "8")
    with pytest.raises(ConfigError, match=r"no local chain at .*/none; expected the chain\.sqlite of a run directory"):
        ask(chain.with_name("none"))


def test_runs_are_told_by_what_hotkeys_say(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, role in NAMES.items():
        first = RUN.digest if role is Role.OWNER else b"r" * 32
        place = "hub:org/mine" if role is Role.OWNER else ""
        asyncio.run(say(chain, name, Commitment(role, False, b"p" * 32, RUN.tag, 0, first, None, None, place)))
    start_clock(chain)
    time.sleep(0.25)  # block 1 is there
    assert ask(chain) == 0
    heading, row = capsys.readouterr().out.splitlines()[2:]
    assert heading.split()[:3] == ["run", "miners", "validators"]
    assert row.split()[:6] == [RUN.sha256[:16], "2", "1", "500", "0", "min,"]
    assert row.endswith("uid 0 (the owner), hub:org/mine")


async def test_a_node_of_a_subnet_that_is_not_there_says_what_lists_those_that_are(chain: Path) -> None:
    write_wallet(chain.parent / "wallets", "local", "miner-0", 1)
    told = NodeConfig(
        netuid=8, run_dir=chain.parent / "run", local_chain=chain,
        wallet={"path": chain.parent / "wallets", "name": "local", "hotkey": "miner-0"},
    )  # type: ignore[call-arg]  # fmt: skip
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match=r"^--netuid 8: no such subnet .* -m distributed_training\.runs"):
            await connect(told, stack)
