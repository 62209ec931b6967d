"""A node's configuration: frozen, typed, loaded once.

Sources, weakest first: defaults < preset TOML < environment (DT_ prefix) < command-line flags. An unknown key is
an error that names the nearest known one; a set option without effect is listed in `NodeConfig.warnings`. Only the
preset file is read; what two nodes must agree on is not here but in the run manifest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from distributed_training import addresses
from distributed_training.errors import ConfigError
from distributed_training.protocol.types import Role
from distributed_training.settings import flags
from distributed_training.settings.kinds import Device, Place, Positive, RunPrefix, Typed
from distributed_training.settings.sections import (
    WALLETS,
    AxonSection,
    DataSection,
    DiskSection,
    HubSection,
    LoggingSection,
    MetricsSection,
    NetworkSection,
    SubtensorSection,
    WalletSection,
)
from distributed_training.settings.words import nearest

Preset = Literal["local", "localnet", "testnet", "mainnet"]
PRESETS = cast(tuple[str, ...], get_args(Preset))
DEFAULT_PRESET = "mainnet"
RUN_PLACE = "{run}"  # in the default run directory, until it is known which run is followed
RUN_DIR_PATHS = {
    "manifest": "{run_dir}/manifest.json",
    "pages": "{run_dir}/pages",
    "checkpoints": "{run_dir}/checkpoints",
}


class NodeConfig(BaseSettings):
    """Everything a node is told by its operator. All paths are absolute; whether they exist is not checked."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="DT_", enable_decoding=False)

    preset: Preset = Field(default=DEFAULT_PRESET, description="which network: local, localnet, testnet, mainnet")
    netuid: int = Field(ge=0, le=65535, description="number of the subnet")
    run: RunPrefix | None = Field(
        default=None,
        description="the run to follow, by the first digits of its manifest's sha256; default: the one that most "
        "validator stake is in",
    )
    run_dir: Typed = Field(
        description="folder of this run, where what is found of it is kept; the node's own files are in nodes/HOTKEY"
    )
    manifest: Typed = Field(description="run manifest; default RUN_DIR/manifest.json, found by content if missing")
    pages: Place = Field(
        description="data pages: a folder with pages.bin, or a data set hub:ORG/NAME[@REVISION]; default: "
        "RUN_DIR/pages, found by content if missing"
    )
    checkpoints: Place = Field(
        description="checkpoints of the run: a folder, or hub:ORG/NAME on the Hugging Face Hub; default: where the "
        "manifest says, else RUN_DIR/checkpoints"
    )
    local_chain: Typed | None = Field(default=None, description="SQLite file of the local chain; None: a real chain")
    device: Device = Field(default="auto", description="auto, cpu, mps, cuda or cuda:N")
    gpus: Positive | None = Field(
        default=None,
        description="GPUs of this machine that share each step's batch, a process for each; default: one, or as many "
        "processes as torchrun started",
    )
    micro_batch: Positive | None = Field(
        default=None,
        description="sequences of the run's batch that go through the model at a time: a step's results are those of "
        "the whole batch up to rounding; default: as many as memory has room for, tried at the start, halved where it "
        "runs out later",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the model's passes: auto (bf16 on a GPU that has it), fp32 or bf16"
    )
    compile: bool = Field(default=False, description="by torch.compile, where that works: minutes at the start")
    checkpoint_activations: bool = Field(
        default=False, description="compute each block twice instead of keeping it: less memory, a third more work"
    )
    threads: Positive | None = Field(default=None, description="CPU threads of torch; default: its own choice")
    rounds: Positive | None = Field(
        default=None, description="stop cleanly when this many rounds of the run are settled"
    )
    steps_per_round: Positive | None = Field(default=None, description="at most this many inner steps a round")
    exact_steps: bool = Field(
        default=False,
        description="exit 4 if a round did not get exactly --steps-per-round steps; one that is under way when the "
        "node starts is sat out",
    )
    train_ahead: bool = Field(
        default=True,
        description="begin a round's work as soon as its pages can be known, before the round starts (default: yes)",
    )
    act_on_head: bool = Field(
        default=True,
        description="begin the exchange when commitments and hashes are seen, and drop what finality decides otherwise "
        "(default: yes); else they are waited for until they are final: the same states, later",
    )
    serve_snapshots: bool = Field(default=True, description="give the run's state to nodes that join (default: yes)")
    page_dir: Typed | None = Field(
        default=None, description="write the run's public page into this folder, new or its own, with each checkpoint"
    )
    dry_run: bool = Field(default=False, description="print the weights it would set; write nothing to the chain")

    subtensor: SubtensorSection = SubtensorSection()
    wallet: WalletSection = WalletSection()
    axon: AxonSection = AxonSection()
    network: NetworkSection = NetworkSection()
    data: DataSection = DataSection()
    hub: HubSection = HubSection()
    disk: DiskSection = DiskSection()
    metrics: MetricsSection = MetricsSection()
    logging: LoggingSection = LoggingSection()
    warnings: tuple[str, ...] = Field(default=(), description="one line per option that was set and has no effect")

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], **sources: Any) -> tuple[Any, ...]:
        return (sources["init_settings"],)  # `load_config` merges, so that an error can name the source at fault

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Put what is not given into the run directory; the fields make every path absolute."""
        run_dir, endpoint = data.get("run_dir"), flags.find(data, "subtensor.chain_endpoint")
        given = {key: value for key, value in data.items() if value is not None}
        if str(endpoint).startswith(addresses.FILE):
            given["local_chain"] = str(endpoint).removeprefix(addresses.FILE)
        if run_dir is None:
            return given
        run_dir = given["run_dir"] = str(run_dir).replace("{netuid}", str(data.get("netuid")))
        paths: dict[str, Any] = {**RUN_DIR_PATHS, "wallet": {"path": WALLETS}}

        def placed(value: Any) -> Any:
            return value.replace("{run_dir}", str(run_dir)) if isinstance(value, str) else value

        merged = flags.merge(paths, given)
        wallet = {key: placed(value) for key, value in dict(merged["wallet"]).items()}
        return {key: placed(value) for key, value in merged.items()} | {"wallet": wallet}

    def by_default(self, name: str) -> bool:
        """Was the path of `manifest`, `pages` or `checkpoints` not given by hand?"""
        return getattr(self, name) == Path(RUN_DIR_PATHS[name].replace("{run_dir}", str(self.run_dir)))

    @property
    def run_is_open(self) -> bool:
        """Is the run directory that of a run which is still to be found?"""
        return RUN_PLACE in self.run_dir.parts

    def in_run(self, tag: bytes) -> NodeConfig:
        """With the paths of this run, where the run directory was open."""
        names = ("run_dir", "manifest", "pages", "checkpoints")
        paths = {name: path for name in names if isinstance(path := getattr(self, name), Path)}
        return self.model_copy(
            update={name: Path(str(path).replace(RUN_PLACE, tag.hex())) for name, path in paths.items()}
        )

    @property
    def node_dir(self) -> Path:
        """What this one node keeps: identity, journal, events, rounds, state."""
        return self.run_dir / "nodes" / self.wallet.hotkey

    @property
    def chain_cache(self) -> Path:
        """What the chain's client keeps: the same for all runs of a subnet."""
        return self.run_dir.parent / "cache" if self.run_is_open else self.node_dir / "cache"

    @property
    def is_public(self) -> bool:
        """Do peers come from all over the Internet?"""
        chain = self.subtensor
        return self.local_chain is None and addresses.is_public_chain(chain.network, chain.chain_endpoint)

    @property
    def announced(self) -> tuple[str, int] | None:
        """(ip, port) to publish on chain; None if nothing listens, or everywhere and no external address was told."""
        if self.axon.outbound_only:
            return None
        ip = self.axon.external_ip or (self.axon.ip if self.axon.ip != "0.0.0.0" else None)
        return (ip, self.axon.external_port or self.axon.port) if ip else None


def load_config(role: Role, argv: Sequence[str]) -> NodeConfig:
    """Flags over environment over preset over defaults. Raises ConfigError; `--help` prints and exits 0."""
    options = flags.options(NodeConfig)
    flags.check_environment(options, os.environ)
    env = EnvSettingsSource(
        NodeConfig, env_prefix="DT_", env_nested_delimiter="_", env_nested_max_split=1, env_ignore_empty=True
    )()
    asked = flags.find_preset(argv)
    name = asked or env.get("preset") or DEFAULT_PRESET
    if name not in PRESETS:
        where = "--preset" if asked else "DT_PRESET"
        raise ConfigError(f"{where}: expected one of {', '.join(PRESETS)}, got {name!r}{nearest(name, PRESETS)}")
    preset = read_preset(name)
    given = flags.parse(role, options, argv, preset)  # may print help and exit
    sources = {"command line": given, "environment": env, f"presets/{name}.toml": preset}
    merged = {**flags.merge(preset, env, given), "preset": name}
    merged["warnings"] = flags.without_effect(role, merged, flags.merge(env, given))
    try:
        config = NodeConfig(**merged)
    except ValidationError as error:
        raise ConfigError(flags.explain(error, options, sources)) from None
    if config.axon.outbound_only and role is Role.VALIDATOR:
        raise ConfigError(
            "--axon.outbound_only: a validator needs an open port, because every miner pushes its log to it and who "
            "cannot would lose its pay; forward a TCP port and give it with --axon.port and --axon.external_ip"
        )
    if config.exact_steps and config.steps_per_round is None:
        raise ConfigError("--exact-steps needs --steps-per-round N: exactly how many?")
    return config


def require_address(config: NodeConfig) -> None:
    """Raises ConfigError for an address, given to be announced, at which no peer could dial. One that is not given
    is asked of validators at the start (roles.outside); the owner needs none."""
    if config.announced is None:
        return
    ip = config.announced[0]
    why = addresses.unreachable(ip, public=config.is_public)
    if why is not None:
        flag = "--axon.external_ip" if config.axon.external_ip else "--axon.ip"
        raise ConfigError(
            f"{flag} {ip}: nobody could reach this node there, {why}; give the address that the Internet sees with "
            "--axon.external_ip; a miner that can open no port starts with --axon.outbound_only"
        )


def read_preset(name: str) -> dict[str, Any]:
    """The preset's values as nested dicts. Raises ConfigError if the file of the installation cannot be parsed."""
    path = files("distributed_training") / "presets" / f"{name}.toml"
    try:
        return TomlConfigSettingsSource(NodeConfig, toml_file=Path(str(path)))()
    except ValueError as error:
        raise ConfigError(f"presets/{name}.toml: {error}") from None
