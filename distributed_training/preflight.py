"""What can be wrong with a node's start, found before anything heavy is loaded: flags, folders, key, address, port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from distributed_training.addresses import FILE, check_hub, is_documentation
from distributed_training.chain.keys import (
    LocalKey,
    coldkey_warning,
    hotkey_address,
    load_hotkey,
    local_registration,
    registration_command,
)
from distributed_training.devices import refusal, seen_gpus, torch_here
from distributed_training.doctor.cheap import at_a_start
from distributed_training.errors import ConfigError, NotRegisteredError
from distributed_training.locks import Lock
from distributed_training.network.ports import free_port
from distributed_training.paths import existing_file, existing_folder, is_missing, usable_folder
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.rules.membership import has_pages, is_listed
from distributed_training.protocol.types import Neuron, Role
from distributed_training.settings.config import NodeConfig, load_config, require_address
from distributed_training.settings.entry import tell
from distributed_training.settings.places import HubRepo, folder_of
from distributed_training.training.team import torchrun_rank

ONE_PROCESS = "one node per hotkey: stop that one first, or give this one a hotkey of its own (--wallet.hotkey)"


def prepare(role: Role, argv: Sequence[str]) -> NodeConfig:
    """The node's configuration, checked as far as this machine alone can tell. Prints warnings. Raises ConfigError."""
    config = load_config(role, argv)
    _check_processes(role, config)
    if config.device not in ("auto", "cpu") and (why := refusal(config.device, seen_gpus(), torch_here())):
        raise ConfigError(why)
    for warning in config.warnings:
        tell("warning", warning)
    _check_folders(role, config)
    for trouble in at_a_start(config):
        tell("warning", f"{trouble.found}; {trouble.fix}")
    require_address(config)
    if config.announced is not None and is_documentation(config.announced[0]):
        tell("warning", f"{config.announced[0]} is an example's address: no peer will reach it")
    own_hotkey(config)
    if config.local_chain is None and (warning := coldkey_warning(config.wallet.path, config.wallet.name)) is not None:
        tell("warning", warning)
    if config.dry_run and config.run_is_open:
        raise ConfigError("--dry-run reads what a running validator keeps: name its run directory with --run-dir")
    if not config.dry_run:
        if not config.run_is_open:
            node_lock(config).release()  # another node of this hotkey explains a port that is in use
        if not config.axon.outbound_only:
            asyncio.run(free_port(config.axon.ip, config.axon.port))
        if config.metrics.prometheus is not None:
            host, _, port = config.metrics.prometheus.rpartition(":")
            asyncio.run(free_port(host, int(port), flag="--metrics.prometheus", wait_s=0.0))
    return config


def _check_processes(role: Role, config: NodeConfig) -> None:
    """Raises ConfigError where several processes are asked for that cannot train together."""
    rank = torchrun_rank(os.environ)
    if rank is not None and (rank.number or role is Role.OWNER):
        raise ConfigError(
            f"torchrun started {rank.size} processes of a program that trains in one; only neurons/miner.py and "
            "neurons/validator.py train in several"
        )
    if rank is not None and config.gpus not in (None, rank.size):
        raise ConfigError(f"--gpus {config.gpus}: torchrun started {rank.size} processes; leave it out")
    if config.gpus not in (None, 1) and role is Role.OWNER:
        raise ConfigError(f"--gpus {config.gpus}: an owner trains nothing; leave it out")


def node_lock(config: NodeConfig) -> Lock:
    """Raises InUse, with the process that has it, and ConfigError."""
    return Lock(config.node_dir, ONE_PROCESS)


def run_manifest(config: NodeConfig) -> RunManifest:
    """Raises ConfigError for one that is missing, damaged, or of another subnet."""
    manifest = load_manifest(config.manifest)
    if manifest.netuid != config.netuid:
        raise ConfigError(f"the manifest is for netuid {manifest.netuid}, --netuid says {config.netuid}")
    return manifest


def own_hotkey(config: NodeConfig) -> LocalKey:
    """Read once in a process: who is asked for a password is asked once. Raises ConfigError, NotRegisteredError."""
    wallet = config.wallet
    if config.local_chain is not None and is_missing(wallet.path / wallet.name / "hotkeys" / wallet.hotkey):
        keys = config.local_chain.parent / "wallets"
        if wallet.path != keys:
            raise ConfigError(f"--wallet.path {wallet.path}: no such hotkey; the keys of a local chain are in {keys}")
        raise NotRegisteredError(not_registered(config))
    return _read(wallet.path, wallet.name, wallet.hotkey)


_read = cache(load_hotkey)


def not_registered(config: NodeConfig, price: str | None = None) -> str:
    """With the command that registers this hotkey, and what that costs where it is known."""
    chain, what = config.subtensor, f"hotkey {config.wallet.hotkey!r} is not registered on subnet {config.netuid}"
    where = "" if config.local_chain is not None else f" of {chain.chain_endpoint or chain.network}"
    cost = "" if price is None else f" (a place costs {price})"
    return f"{what}{where}{cost}; {how_to_register(config)}"


def how_to_register(config: NodeConfig) -> str:
    wallet, chain = config.wallet, config.subtensor
    if config.local_chain is not None:
        return f"register it with: {local_registration(wallet.name, wallet.hotkey, config.local_chain.parent)}"
    where, address, folder = "", None, wallet.path
    if is_missing(wallet.path / wallet.name / "coldkey"):
        where, address, folder = ", on the machine that has the coldkey,", own_hotkey(config).hotkey, None
    network = chain.chain_endpoint or chain.network
    command = registration_command(network, config.netuid, wallet.name, wallet.hotkey, address=address, wallets=folder)
    return f"register it{where} with: {command}"


def not_listed(me: Neuron, manifest: RunManifest) -> str | None:
    """Why this hotkey cannot mine in the run, by its uid or by the run's list; None: it may."""
    if not has_pages(me, manifest):
        return (
            f"run {manifest.name} ({manifest.sha256[:16]}) has pages for the uids below {manifest.max_uids}, and the "
            f"hotkey {me.hotkey} has uid {me.uid}: ask its owner for a run of that many uids (max_uids), or choose "
            "another run (--run DIGEST)"
        )
    if is_listed(me, manifest):
        return None
    return (
        f"run {manifest.name} ({manifest.sha256[:16]}) lists who may mine, and neither the hotkey {me.hotkey} nor its "
        f"coldkey {hotkey_address(me.coldkey)} is among them: ask its owner for a run that lists one of them, or "
        "choose another run (--run DIGEST)"
    )


def _check_folders(role: Role, config: NodeConfig) -> None:
    """As far as files are needed that a person names. Raises ConfigError with the flag."""
    _named("--run-dir", usable_folder, config.run_dir)
    _named("--run-dir", usable_folder, config.node_dir)
    check_local_chain(config)
    if not (config.run_is_open or (config.by_default("manifest") and is_missing(config.manifest))):  # else it is found
        _check_manifest(config)
    check_places(role, config)


def check_local_chain(config: NodeConfig) -> None:
    """Raises ConfigError where a local chain is named and none is there."""
    if config.local_chain is None or not is_missing(config.local_chain):
        return
    if (endpoint := config.subtensor.chain_endpoint) is not None and endpoint.startswith(FILE):
        raise ConfigError(f"--subtensor.chain_endpoint {endpoint}: no local chain is there")
    raise ConfigError(f"--run-dir {config.run_dir}: no local run is there (scripts/demo.sh makes one)")


def check_places(role: Role, config: NodeConfig) -> None:
    """Pages and checkpoints that a person named. Raises ConfigError with the flag."""
    if isinstance(config.pages, Path) and not (config.by_default("pages") and is_missing(config.pages)):
        if is_missing(config.pages):
            _named("--pages", folder_of, config.pages)
        _named("--pages", existing_folder if config.pages.is_dir() else existing_file, config.pages)
    if isinstance(config.checkpoints, Path) and role is Role.OWNER:
        _named("--checkpoints", usable_folder, config.checkpoints)
    if any(isinstance(place, HubRepo) for place in (config.pages, config.checkpoints, config.hub.repo)):
        check_hub(os.environ)


def _check_manifest(config: NodeConfig) -> None:
    try:
        run_manifest(config)
    except ConfigError as error:
        mend = "; move that file away and the run is found on chain" if config.by_default("manifest") else ""
        raise ConfigError(f"{error}{mend}") from None


def _named(flag: str, check: Callable[[Path], Path], path: Path) -> None:
    try:
        check(path)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
