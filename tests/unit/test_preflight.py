"""A node's start: what is wrong is said in one line, before torch or bittensor are loaded."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training

from distributed_training.chain.keys import write_wallet
from distributed_training.errors import ConfigError, NotRegisteredError
from distributed_training.preflight import not_registered, own_hotkey, prepare
from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config

ROOT = Path(__file__).parents[2]
RUN = tiny_training.manifest(tiny_training.GPT2)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory in which a node could start."""
    (tmp_path / "manifest.json").write_bytes(RUN.canonical())
    (tmp_path / "chain.sqlite").touch()
    (tmp_path / "pages").mkdir()
    write_wallet(tmp_path / "wallets", "local", "miner-0", 1)
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return probe.getsockname()[1]


def flags(run: Path, *more: str) -> list[str]:
    """`more` stands in the place of what it names, as a flag is given once."""
    given = {"--preset": "local", "--run-dir": run, "--wallet.hotkey": "miner-0", "--netuid": RUN.netuid}
    given |= {"--axon.port": free_port()}
    named = {word.partition("=")[0] for word in more}
    return [*(str(w) for flag, value in given.items() if flag not in named for w in (flag, value)), *more]


def refused(argv: list[str], role: Role = Role.MINER) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(role, argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_node_that_can_start_is_left_alone(run: Path) -> None:
    config = prepare(Role.MINER, flags(run))
    assert config.run_dir == run and own_hotkey(config) is own_hotkey(config)  # a password is asked for once


def test_what_is_missing_is_named_with_its_flag(run: Path) -> None:
    elsewhere = run / "elsewhere"
    assert refused(flags(run, "--pages", str(elsewhere))) == (
        f"--pages: expected a folder, {elsewhere} does not exist; a repository of the Hub is written hub:ORG/NAME"
    )
    assert refused(flags(run, "--manifest", str(elsewhere))).startswith(f"cannot read the run manifest {elsewhere}")
    (run / "file").touch()
    assert refused(flags(run / "file")) == f"--run-dir: expected a folder, {run}/file is a file"
    assert refused(flags(run, "--netuid", "77")).startswith(
        f"the manifest is for netuid {RUN.netuid}, --netuid says 77"
    )
    (run / "manifest.json").write_bytes(RUN.canonical()[:1000])
    assert refused(flags(run)).endswith("; move that file away and the run is found on chain")
    (run / "manifest.json").write_bytes(RUN.canonical())
    (run / "chain.sqlite").unlink()
    assert "no local run is there (scripts/demo.sh makes one)" in refused(flags(run))
    by_hand = flags(run, "--subtensor.chain_endpoint", f"file:{elsewhere}")
    assert refused(by_hand) == f"--subtensor.chain_endpoint file:{elsewhere}: no local chain is there"


def test_what_is_not_named_may_be_missing_because_it_is_found(run: Path) -> None:
    (run / "pages").rmdir()
    assert prepare(Role.MINER, flags(run)).by_default("pages")
    (run / "manifest.json").unlink()
    assert prepare(Role.MINER, flags(run)).by_default("manifest")


def test_netuid_and_wallet_are_enough(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run directory is of the netuid and of the run, which is known later; until then nothing is made."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    chain = ["--subtensor.chain_endpoint", f"file:{run / 'chain.sqlite'}", "--axon.ip", "127.0.0.2"]
    wallet = ["--wallet.path", str(run / "wallets"), "--wallet.name", "local", "--wallet.hotkey", "miner-0"]
    config = prepare(Role.MINER, ["--netuid", "38", *chain, *wallet, "--axon.port", str(free_port())])
    assert config.warnings == () and config.local_chain == run / "chain.sqlite" and config.run_is_open
    assert not (tmp_path / "home").exists()
    found = config.in_run(bytes.fromhex("00112233445566aa"))
    folder = tmp_path / "home/.distributed-training/mainnet/38/00112233445566aa"
    assert not found.run_is_open and found.run_dir == folder and found.manifest == folder / "manifest.json"
    assert found.by_default("pages") and found.node_dir == folder / "nodes" / "miner-0"
    assert refused(["--netuid", "38", *chain, *wallet, "--run", "12"]).startswith("--run: expected the first 4 to 64")
    dry = refused(["--netuid", "38", *chain, *wallet, "--dry-run"], Role.VALIDATOR)
    assert dry == "--dry-run reads what a running validator keeps: name its run directory with --run-dir"


def test_a_hotkey_that_is_not_there_says_the_command(run: Path) -> None:
    with pytest.raises(NotRegisteredError, match=r"register\.py --run-dir .* --wallet\.hotkey 'my key'$"):
        prepare(Role.MINER, flags(run, "--wallet.hotkey", "my key"))
    elsewhere = flags(run, "--wallet.path", str(run / "other"))
    assert refused(elsewhere).endswith(f"the keys of a local chain are in {run}/wallets")


@pytest.mark.parametrize("name", ["", "a/b", "..", "n" * 201, "a\nb", "-x", "é" * 101])
def test_a_name_that_cannot_be_a_files_is_refused(run: Path, name: str) -> None:
    assert refused(flags(run, f"--wallet.hotkey={name}")).startswith("--wallet.hotkey: expected a name")


def test_a_port_that_is_taken_or_not_ours_is_named(run: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.2", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert f"port {port} is in use" in refused(flags(run, "--axon.port", str(port)))
    assert "cannot listen on 192.0.2.1" in refused(flags(run, "--axon.ip", "192.0.2.1"))


def test_an_empty_variable_says_nothing_and_an_empty_flag_is_wrong(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT_RUN_DIR", "")
    monkeypatch.setenv("DT_AXON_EXTERNAL_IP", "")
    assert prepare(Role.MINER, flags(run)).run_dir == run
    assert refused(flags(run, "--run-dir", "")) == "--run-dir: expected a path, got an empty text"


def test_a_hub_that_is_none_is_said_before_it_is_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")
    assert refused(flags(run, "--pages", "hub:a/b")).startswith("HF_ENDPOINT: expected https://HOST")
    prepare(Role.MINER, flags(run))  # nobody asks it


PROGRAMS = [
    *(["-X", "importtime", f"neurons/{name}.py"] for name in ("miner", "validator", "owner")),
    *(["-X", "importtime", f"scripts/{name}.py"] for name in ("create_run", "evaluate", "sample", "register", "bench")),
    *(["-X", "importtime", f"scripts/{name}.py"] for name in ("verify_checkpoint", "build_pages", "fuzz")),
    *(["-X", "importtime", "-m", f"distributed_training.{name}"] for name in ("localnet", "simulation")),
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program[-1])
def test_a_wrong_flag_and_help_load_nothing_heavy(program: list[str]) -> None:
    for flag, code in (("--no-such-flag", 2), ("--help", 0)):
        done = subprocess.run([sys.executable, *program, flag], cwd=ROOT, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        assert done.returncode == code and len(said) == (1 if code else 0)
        assert not code or said[0].startswith("error: ")
        assert code or done.stdout.startswith(("usage: ", "Run one benchmark"))
        for heavy in ("torch", "transformers", "hivemind", "bittensor", "matplotlib"):
            assert f" {heavy}\n" not in done.stderr


def test_a_node_refuses_a_key_before_torch_is_loaded(run: Path) -> None:
    (run / "wallets" / "local" / "hotkeys" / "miner-0").write_text("{}")
    command = [sys.executable, "-X", "importtime", "neurons/miner.py", *flags(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and " torch\n" not in done.stderr and " bittensor\n" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot read the hotkey at ")


def on_a_real_chain(run: Path, *more: str) -> list[str]:
    address = ("--axon.ip", "127.0.0.2", "--axon.external_ip", "8.8.8.8", "--axon.port", str(free_port()))
    wallet = ("--wallet.name", "cold", "--wallet.hotkey", "hot", "--wallet.path", str(run / "keys"))
    return ["--netuid", str(RUN.netuid), "--run-dir", str(run), *wallet, *address, *more]


def test_the_command_that_costs_money_names_network_wallet_and_folder(run: Path) -> None:
    key = write_wallet(run / "keys", "cold", "hot", 1).hotkey
    buys = (
        f"register it with: btcli tx burned-register --network {{}} --netuid {RUN.netuid} -w cold -H hot --wallet-path"
    )
    endpoint = "ws://10.0.0.1:9944"
    for flags, network in (
        (["--preset", "testnet"], "test"),
        (["--preset", "mainnet"], "finney"),
        (["--preset", "testnet", "--subtensor.chain_endpoint", endpoint], endpoint),
    ):
        told = not_registered(load_config(Role.MINER, on_a_real_chain(run, *flags)), "0.5 TAO")
        assert told.startswith(
            f"hotkey 'hot' is not registered on subnet {RUN.netuid} of {network} (a place costs 0.5 TAO)"
        )
        assert told.endswith(f"{buys.format(network)} {run / 'keys'}")
    (run / "keys" / "cold" / "coldkey").unlink()
    told = not_registered(load_config(Role.MINER, on_a_real_chain(run)))
    bought = f"btcli tx burned-register --network finney --netuid {RUN.netuid} -w cold --hotkey {key}"
    assert told.endswith(f"; register it, on the machine that has the coldkey, with: {bought}")


def test_a_coldkey_beside_the_hotkey_is_said_once_at_the_start_but_not_of_play_money(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wallet(run / "keys", "cold", "hot", 1)
    prepare(Role.MINER, on_a_real_chain(run))
    assert capsys.readouterr().err.count("PRIVATE COLDKEY OF WALLET 'cold' LIES ON THIS MACHINE, NOT ENCRYPTED") == 1
    prepare(Role.MINER, flags(run))
    assert (run / "wallets" / "local" / "coldkey").exists() and "COLDKEY" not in capsys.readouterr().err
