"""Create a run directory, or open the one that is there: pages, manifest, wallets, chain at block 0, run.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed_training.chain.keys import derive_coldkey, derive_keypair, write_wallet
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain
from distributed_training.data import tokens
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.page_file import PAGES_FILE, open_page_table
from distributed_training.data.reading import TablePages
from distributed_training.data.tokens import Tokenizer
from distributed_training.errors import ConfigError
from distributed_training.files import write_whole
from distributed_training.localnet.attacks import constants_of
from distributed_training.localnet.layout import SPARE_HOTKEY, WALLET, NodeSpec, RunPaths, node_specs
from distributed_training.localnet.options import Options
from distributed_training.localnet.run import pace
from distributed_training.localnet.run.kills import Kill, plan_kills
from distributed_training.network.identity import PeerIdentity
from distributed_training.protocol.manifest import RunManifest, load_manifest
from distributed_training.protocol.types import Role
from distributed_training.recipes.creation import Choices, Say, create_manifest, find_tokenizer
from distributed_training.recipes.reading import read_model, read_preset
from distributed_training.settings.arguments import assignment
from distributed_training.settings.flags import merge
from distributed_training.sources import open_pages
from distributed_training.training.model import model_size

LOCAL = read_preset("local")
DATA = LOCAL.sections["data"]
WEIGHTS_RATE_LIMIT = 20
VALIDATOR_STAKE = 1000.0


@dataclass(frozen=True, slots=True)
class Run:
    paths: RunPaths
    manifest: RunManifest
    specs: tuple[NodeSpec, ...]
    seed: int
    params: dict[str, Any]
    resumed: bool
    kills: tuple[Kill, ...] = ()
    block_s: float = 1.0


def open_or_create(options: Options, say: Say) -> Run:
    """Raises ConfigError when the directory holds anything but this same run."""
    paths = RunPaths(options.run_dir)
    if paths.run.exists():
        return _open(options, paths)
    if options.run_dir.exists() and any(options.run_dir.iterdir()):
        raise ConfigError(
            f"--run-dir {options.run_dir} is not empty and holds no run; expected a new directory or a run"
        )
    return _create(options, paths, say)


def _open(options: Options, paths: RunPaths) -> Run:
    try:
        stored = json.loads(paths.run.read_text())
        params, digest, block_s = stored["params"], stored["manifest_sha256"], float(stored["block_s"])
        kills = tuple(Kill(**kill) for kill in stored.get("kills", []))
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{paths.run} cannot be read; expected a run made by this command") from None
    wanted = options.params()
    other = [name for name in wanted if wanted[name] != params.get(name)]
    if other:
        was = ", ".join(f"{name} {params.get(name)} there, {wanted[name]} asked for" for name in other)
        raise ConfigError(
            f"--run-dir {paths.root} holds another run ({was}); use another directory or the same options"
        )
    manifest = load_manifest(paths.manifest)
    if manifest.sha256 != digest:
        raise ConfigError(f"{paths.manifest} has sha256 {manifest.sha256[:16]}..., run.json says {digest[:16]}...")
    return Run(paths, manifest, node_specs(options), options.seed, params, True, kills, block_s)


def _create(options: Options, paths: RunPaths, say: Say) -> Run:
    """run.json is written last: a directory without it is no run."""
    scratch = RunPaths(paths.root.with_name(f".{paths.root.name}.{os.getpid()}"))
    model = LOCAL.model if options.model is None else read_model(options.model)
    specs = node_specs(options)
    kills = planned(options, specs)
    try:
        scratch.root.mkdir(parents=True)
        tokenizer, file = find_tokenizer(options.tokenizer, None, options.pages, model)
        if file is not None:
            write_whole(scratch.root / tokens.TOKENIZER_FILE, file.read_bytes())
        manifest = create_manifest(
            choices(options, model, tokenizer), lambda: _pages(options, scratch, say), say
        ).manifest
        scratch.manifest.write_bytes(manifest.canonical())
        say("writing wallets and the chain at block 0")
        _wallets(scratch, specs, options.seed)
        block_s = options.block_s or _pace(options, manifest, say)
        _chain(scratch, specs, manifest, options.seed, block_s)
        run = {"version": 1, "seed": options.seed, "params": options.params(), "manifest_sha256": manifest.sha256}
        run["block_s"] = block_s
        scratch.run.write_text(
            json.dumps(run | {"nodes": describe(specs), "kills": [asdict(k) for k in kills]}, indent=2) + "\n"
        )
        if paths.root.exists():
            paths.root.rmdir()
        scratch.root.rename(paths.root)
    except OSError as error:
        raise ConfigError(f"--run-dir {paths.root} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch.root, ignore_errors=True)
    return Run(paths, manifest, specs, options.seed, options.params(), False, kills, block_s)


def planned(options: Options, specs: Sequence[NodeSpec]) -> tuple[Kill, ...]:
    """The kills of this run; adversaries are left to themselves unless named. Raises ConfigError."""
    named = {request.name for request in options.kills}
    nodes = {s.name: s.role.name.lower() for s in specs if s.adversary is None or s.name in named}
    return plan_kills(options.kills, nodes, options.rounds, options.seed)


def choices(options: Options, model: dict[str, Any], tokenizer: Tokenizer) -> Choices:
    """The local constants, with room for the fastest miner's steps."""
    fastest = max(options.steps_per_round)
    tokens_per_step = DATA["batch_size"] * DATA["sequence_length"]
    overrides = {
        "name": f"local-{options.seed}",
        "public": {"run_key": bytes(derive_keypair(options.seed, "owner").public_key).hex()},
        "inner": {
            "nominal_steps": options.steps_at_speed_1,
            "max_steps": max(LOCAL.sections["inner"]["max_steps"], fastest),
        },
        "average": {"token_cap": max(64, 4 * options.steps_at_speed_1, fastest) * tokens_per_step},
    }
    return Choices(
        preset=LOCAL,
        model=model,
        tokenizer=tokenizer,
        seed=options.seed,
        overrides=merge(overrides, *map(assignment, (*constants_of(options.adversaries), *options.constants))),
        steps=fastest,
        expected_reducers=options.miners,
    )


def _pace(options: Options, manifest: RunManifest, say: Say) -> float:
    """Seconds a block takes here. Raises ConfigError."""
    say("measuring how fast this machine is")
    restarts = bool(options.kills) or options.hub
    num_coords = model_size(manifest.model.config)
    steps = options.steps_per_round + ((options.steps_at_speed_1,) if options.newcomer else ())
    work = pace.Work(steps, options.validators, restarts, num_coords)
    return pace.block_seconds(pace.measured(manifest, work), manifest, work, options.steps)


def describe(specs: Sequence[NodeSpec]) -> dict[str, Any]:
    """Node name -> what run.json says of it. The only file that names an adversary."""
    return {s.name: {"role": s.role.name.lower(), "uid": s.uid, "adversary": s.adversary} for s in specs}


def _pages(options: Options, scratch: RunPaths, say: Say) -> TablePages:
    """Pages are the same for the same text, so runs side by side are built once; each run has its own copy."""
    say(f"pages: {options.pages or options.text or 'built from the standard library'}")
    if options.pages is not None:
        return _given_pages(options.pages, scratch)
    if options.text is not None:
        build_pages(scratch.pages, options.text, num_pages=None, say=say)
        return LocalPages(scratch.pages)
    name = hashlib.sha256(f"stdlib 2 {sys.version}".encode()).hexdigest()[:12]
    cache = options.run_dir.parent / ".pages" / name
    build_pages(cache, None, num_pages=None)
    scratch.pages.mkdir()
    for file in cache.iterdir():
        if not file.name.startswith("."):
            shutil.copy2(file, scratch.pages / file.name)
    return LocalPages(scratch.pages)


def _given_pages(folder: Path, scratch: RunPaths) -> TablePages:
    """Made elsewhere. The run gets the page manifest, and what else lies beside it without a second copy of it."""
    table = open_page_table(folder / PAGES_FILE)
    names = [PAGES_FILE, *(file.name for file in table.header.files if (folder / file.name).is_file())]
    for name in names:
        target = scratch.pages / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(folder / name)
        except OSError:  # another file system
            shutil.copy2(folder / name, target)
    return open_pages(scratch.pages, scratch.root)


def _wallets(paths: RunPaths, specs: Sequence[NodeSpec], seed: int) -> None:
    """Wallet files and peer keys of every node, all from the seed."""
    for name in (*(s.name for s in specs), SPARE_HOTKEY):
        write_wallet(paths.wallets, WALLET, name, seed)
    for spec in specs:
        peer_seed = hashlib.blake2b(f"{seed}/{spec.name}".encode(), digest_size=32, person=b"dt-peer-key").digest()
        PeerIdentity.load_or_create(paths.node(spec.name) / "identity.key", peer_seed)


def _chain(paths: RunPaths, specs: Sequence[NodeSpec], manifest: RunManifest, seed: int, block_s: float) -> None:
    coldkey = derive_coldkey(seed, WALLET).ss58_address
    hotkeys = {spec.name: derive_keypair(seed, spec.name).ss58_address for spec in specs}
    create_chain(
        paths.chain,
        seed=seed,
        block_s=block_s,
        netuid=manifest.netuid,
        tempo=LOCAL.tempo,
        weights_rate_limit=WEIGHTS_RATE_LIMIT,
        version_key=manifest.version_key,
        max_uids=manifest.max_uids,
        owner_hotkey=hotkeys["owner"],
        owner_coldkey=coldkey,
        neurons=[
            GenesisNeuron(
                hotkeys[spec.name],
                coldkey,
                VALIDATOR_STAKE if spec.role is Role.VALIDATOR else 0.0,
                spec.role is Role.VALIDATOR,
            )
            for spec in sorted(specs, key=lambda s: s.uid)
        ],
    )
