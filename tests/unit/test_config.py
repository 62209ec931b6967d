from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import tiny_training
from pydantic import ValidationError

from distributed_training.errors import ConfigError
from distributed_training.node import _stores
from distributed_training.protocol.types import Role
from distributed_training.settings.config import PRESETS, load_config, require_address
from distributed_training.settings.flags import options

RUN = tiny_training.manifest(tiny_training.GPT2)
ROOT = Path(__file__).parents[2]
LOCAL = ["--preset", "local"]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("DT_"):
            monkeypatch.delenv(name)


def refused(*argv: str, role: Role = Role.MINER) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(role, argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_local_preset_derives_every_path_from_the_run_directory(tmp_path: Path) -> None:
    config = load_config(Role.MINER, [*LOCAL, "--run-dir", str(tmp_path), "--wallet.hotkey", "miner-3"])
    assert config.manifest == tmp_path / "manifest.json"
    assert config.pages == tmp_path / "pages"
    assert config.checkpoints == tmp_path / "checkpoints"
    assert config.local_chain == tmp_path / "chain.sqlite"
    assert config.wallet.path == tmp_path / "wallets"
    assert config.wallet.name == "local"
    assert config.node_dir == tmp_path / "nodes" / "miner-3"
    assert config.announced == ("127.0.0.2", 8091)
    assert config.warnings == ()


def test_explicit_paths_win_over_derived_ones_and_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(Role.MINER, [*LOCAL, "--run-dir", "run", "--pages", "elsewhere", "--manifest", "~/m.json"])
    assert config.run_dir == tmp_path / "run"
    assert config.pages == tmp_path / "elsewhere"
    assert config.manifest == Path.home() / "m.json"
    assert config.checkpoints == tmp_path / "run" / "checkpoints"


def test_flags_win_over_environment_over_preset_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(Role.MINER, LOCAL).axon.ip == "127.0.0.2"
    assert load_config(Role.MINER, LOCAL).axon.port == 8091
    monkeypatch.setenv("DT_AXON_IP", "127.0.0.3")
    monkeypatch.setenv("DT_AXON_PORT", "9000")
    config = load_config(Role.MINER, [*LOCAL, "--axon.port", "9001"])
    assert (config.axon.ip, config.axon.port) == ("127.0.0.3", 9001)
    monkeypatch.setenv("DT_PRESET", "local")
    assert load_config(Role.MINER, []).preset == "local"
    assert load_config(Role.MINER, ["--preset", "localnet"]).preset == "localnet"


def test_training_ahead_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(Role.MINER, LOCAL).train_ahead
    assert not load_config(Role.MINER, [*LOCAL, "--no-train-ahead"]).train_ahead
    monkeypatch.setenv("DT_TRAIN_AHEAD", "false")
    assert not load_config(Role.MINER, LOCAL).train_ahead
    assert load_config(Role.MINER, [*LOCAL, "--train-ahead"]).train_ahead
    assert "miner.py only" in refused(*LOCAL, "--train-ahead", role=Role.VALIDATOR)


def test_every_option_can_be_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DT_SUBTENSOR_CHAIN_ENDPOINT": "wss://node.example:443",
        "DT_WALLET_HOTKEY": "hot",
        "DT_AXON_EXTERNAL_IP": "203.0.113.7",
        "DT_AXON_EXTERNAL_PORT": "1234",
        "DT_LOGGING_DEBUG": "true",
        "DT_LOGGING_JSON": "1",
        "DT_STEPS_PER_ROUND": "7",
        "DT_RUN_DIR": "/tmp/somewhere",
        "DT_NETUID": "38",
    }.items():
        monkeypatch.setenv(name, value)
    config = load_config(Role.MINER, [])
    assert config.subtensor.chain_endpoint == "wss://node.example:443"
    assert config.wallet.hotkey == "hot"
    assert config.announced == ("203.0.113.7", 1234)
    assert config.logging.debug and config.logging.json_lines
    assert (config.steps_per_round, config.netuid, config.run_dir) == (7, 38, Path("/tmp/somewhere"))


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--axon.prt", "1"], ["--axon.prt", "did you mean --axon.port?"]),
        (["--wallet.hotky=a"], ["--wallet.hotky", "did you mean --wallet.hotkey?"]),
        (["--run_dir", "x"], ["did you mean --run-dir?"]),
        (["--axon.port", "x"], ["--axon.port", "whole number", "'x'"]),
        (["--axon.port", "70000"], ["--axon.port", "65535", "'70000'"]),
        (["--axon.port"], ["--axon.port", "expected one argument"]),
        (["--axon.ip", "localhost"], ["--axon.ip", "IPv4", "'localhost'"]),
        (["--device", "gpu"], ["--device", "cuda:N", "'gpu'"]),
        (["--device", "cpu:1"], ["--device"]),
        (["--rounds", "0"], ["--rounds", "greater than or equal to 1"]),
        (["--wallet.hotkey", "../x"], ["--wallet.hotkey", "without slashes"]),
        (["--subtensor.chain_endpoint", "http://x"], ["--subtensor.chain_endpoint"]),
        (["--exact-steps"], ["--exact-steps", "--steps-per-round"]),
        (["--dry-run"], ["--dry-run", "validator.py only"]),
        (["stray"], ["'stray'"]),
    ],
)
def test_bad_flags_are_one_line_that_names_the_key(argv: list[str], parts: list[str]) -> None:
    message = refused(*LOCAL, *argv)
    for part in parts:
        assert part in message


def test_unknown_preset_names_the_nearest_one() -> None:
    message = refused("--preset", "mainet")
    assert "local, localnet, testnet, mainnet" in message
    assert message.endswith("did you mean mainnet?")


def test_variables_at_fault_are_named_as_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DT_AXON_PORT", "many")
    assert refused(*LOCAL).startswith("DT_AXON_PORT: ")
    monkeypatch.delenv("DT_AXON_PORT")
    monkeypatch.setenv("DT_AXON_PROT", "1")
    assert refused(*LOCAL) == "unknown environment variable DT_AXON_PROT; did you mean DT_AXON_PORT?"


def test_variables_of_the_setup_script_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DT_VENV", "DT_TORCH", "DT_TORCH_INDEX"):
        monkeypatch.setenv(name, "anything")
    assert load_config(Role.MINER, LOCAL).preset == "local"


def test_public_networks_need_a_netuid() -> None:
    assert "--netuid is required" in refused()
    assert load_config(Role.MINER, ["--netuid", "38"]).subtensor.network == "finney"
    assert load_config(Role.MINER, ["--preset", "testnet", "--netuid", "3"]).subtensor.network == "test"


def test_a_node_that_listens_everywhere_announces_nothing_until_told_its_address() -> None:
    argv = ["--netuid", "38"]
    assert load_config(Role.MINER, argv).announced is None
    config = load_config(Role.MINER, [*argv, "--axon.external_ip", "203.0.113.7", "--axon.port", "9"])
    assert config.announced == ("203.0.113.7", 9)


@pytest.mark.parametrize("role", [Role.MINER, Role.VALIDATOR])
def test_who_listens_everywhere_may_leave_its_address_to_be_asked_for(role: Role) -> None:
    argv = ["--netuid", "1", "--axon.ip", "0.0.0.0", "--preset", "testnet"]
    require_address(load_config(role, argv))  # asked of validators at the start
    require_address(load_config(role, [*argv, "--axon.external_ip", "203.0.113.7"]))
    require_address(load_config(Role.OWNER, argv))


def test_caps_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def caps(*more: str) -> tuple[float | None, float | None]:
        return load_config(Role.MINER, ["--netuid", "1", *more]).network.bytes_per_s

    assert caps() == (None, None)
    assert caps("--network.up_mbit", "20") == (2.5e6, None) == caps("--network.up-mbit=20")
    monkeypatch.setenv("DT_NETWORK_DOWN_MBIT", "0.8")
    assert caps() == (None, 1e5)
    for wrong in ("0", "0.05", "-1", "nan", "inf", "1e6", "fast"):
        with pytest.raises(ConfigError, match=r"^--network\.up_mbit: [^\n]*$"):
            caps("--network.up_mbit", wrong)


def test_a_miner_without_a_port_announces_nothing_and_a_validator_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(Role.MINER, [*LOCAL, "--axon.outbound_only", "--axon.port", "9001"])
    assert config.axon.outbound_only and config.announced is None
    assert config.warnings == (
        "--axon.port has no effect: with --axon.outbound_only nothing listens and nothing is announced",
    )
    require_address(config)
    assert load_config(Role.OWNER, [*LOCAL, "--axon.outbound_only"]).announced is None
    message = refused(*LOCAL, "--axon.outbound_only", role=Role.VALIDATOR)
    assert "every miner pushes its log" in message and "--axon.external_ip" in message
    monkeypatch.setenv("DT_AXON_OUTBOUND_ONLY", "1")
    assert load_config(Role.MINER, LOCAL).announced is None


def test_options_without_effect_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--subtensor.network" in load_config(Role.MINER, [*LOCAL, "--subtensor.network", "test"]).warnings[0]
    both = ["--netuid", "1", "--subtensor.network", "test", "--subtensor.chain_endpoint", "ws://x:1"]
    assert "--subtensor.network" in load_config(Role.MINER, both).warnings[0]
    assert "external_port" in load_config(Role.MINER, ["--netuid", "1", "--axon.external_port", "5"]).warnings[0]
    assert load_config(Role.MINER, [*LOCAL, "--axon.external_port", "5"]).warnings == ()
    team = ["--metrics.wandb_entity", "team"]
    assert "without --metrics.wandb" in load_config(Role.MINER, [*LOCAL, *team]).warnings[0]
    assert load_config(Role.MINER, [*LOCAL, *team, "--metrics.wandb", "offline"]).warnings == ()
    monkeypatch.setenv("DT_DRY_RUN", "true")
    assert load_config(Role.MINER, LOCAL).warnings == ("--dry-run has no effect: only a validator uses it",)
    assert load_config(Role.VALIDATOR, LOCAL).warnings == ()


def test_the_config_is_frozen() -> None:
    config = load_config(Role.MINER, LOCAL)
    with pytest.raises(ValidationError):
        config.netuid = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.axon.port = 5  # type: ignore[misc]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_only_known_keys(name: str) -> None:
    text = (files("distributed_training") / "presets" / f"{name}.toml").read_text()
    known = {option.key for option in options(type(load_config(Role.MINER, LOCAL)))} | {"local_chain"}
    for key, value in tomllib.loads(text).items():
        assert {f"{key}.{leaf}" for leaf in value} <= known if isinstance(value, dict) else key in known
    assert load_config(Role.OWNER, ["--preset", name, "--netuid", "7"]).netuid == 7


@pytest.mark.parametrize("role", list(Role))
def test_help_shows_groups_defaults_and_examples(role: Role, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(role, [*LOCAL, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("what every node is told:", "where peers reach it:", "127.0.0.2", "examples:", "exit codes:"):
        assert part in text
    assert ("--dry-run" in text) == (role is Role.VALIDATOR)
    assert ("--exact-steps" in text) == (role is Role.MINER)
    assert ("--axon.outbound_only" in text) == (role is not Role.VALIDATOR)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["miner", "validator", "owner"])
def test_entry_points_refuse_before_anything_is_loaded(name: str) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "neurons" / f"{name}.py"), "--axon.prt", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: unknown option --axon.prt; did you mean --axon.port?"
    assert "torch" not in done.stderr
    assert done.stdout == ""


def test_a_validator_can_leave_out_looking_at_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config(Role.VALIDATOR, LOCAL).hub.look
    assert not load_config(Role.VALIDATOR, [*LOCAL, "--no-hub.look"]).hub.look
    assert "validator.py only" in refused("--hub.look")
    monkeypatch.setenv("DT_HUB_LOOK", "false")
    assert not load_config(Role.VALIDATOR, LOCAL).hub.look
    assert load_config(Role.OWNER, LOCAL).warnings == ("--hub.look has no effect: only a validator uses it",)


def test_an_option_without_effect_opens_no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DT_HUB_REPO", "org/mine")
    monkeypatch.setenv("DT_HUB_KEEP", "1")  # an owner would be refused
    local = [*LOCAL, "--run-dir", str(tmp_path)]
    stores = _stores(Role.VALIDATOR, load_config(Role.VALIDATOR, local), RUN)
    assert stores.own is None and stores.open_repo is not None
    stores = _stores(Role.VALIDATOR, load_config(Role.VALIDATOR, [*local, "--no-hub.look"]), RUN)
    assert stores.open_repo is None
    monkeypatch.delenv("DT_HUB_KEEP")
    stores = _stores(Role.OWNER, load_config(Role.OWNER, local), RUN)
    assert stores.own is None and stores.open_repo is None


def test_other_chain_nodes_are_named_one_by_one_or_together() -> None:
    flag, base = "--subtensor.fallback", ["--netuid", "1", "--run-dir", "/run"]
    twice = load_config(Role.MINER, [*base, flag, "ws://a:1", flag, "wss://b:2"])
    assert twice.subtensor.fallback == ("ws://a:1", "wss://b:2")
    assert load_config(Role.MINER, [*base, flag, "ws://a:1,wss://b:2"]).subtensor == twice.subtensor
    with pytest.raises(ConfigError, match=r"--subtensor\.fallback.*expected ws://HOST:PORT"):
        load_config(Role.MINER, [*base, flag, "ws://a:1", flag, "http://b"])
