"""The world of one simulation: chain, links, keys, one engine, and the nodes that live there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from distributed_training.chain.base import Verify
from distributed_training.chain.keys import LocalKey, derive_coldkey, derive_keypair, verify
from distributed_training.chain.local.genesis import REGISTRATION_RAO, GenesisNeuron
from distributed_training.chain.local.store import ChainParams
from distributed_training.chain.memory import Ledger
from distributed_training.data.local import LocalPages
from distributed_training.engine import Engine, load_engine
from distributed_training.localnet.attacks import staged
from distributed_training.network.identity import PeerIdentity, verify_peer
from distributed_training.network.links import LinkProfile, Links
from distributed_training.network.memory import MemorySwitch
from distributed_training.network.peers import VerifyPeer
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.recipes.reading import read_preset
from distributed_training.settings.config import NodeConfig
from distributed_training.simulation.options import SimOptions, make_run
from distributed_training.simulation.records import Recorder

WALLET = "local"
STAKE = 1000.0
LOSSY = LinkProfile(loss=0.02, breaks=0.0005)
CALM = LinkProfile()
STEP_S = (2.0, 9.0)  # virtual seconds of an inner step: D-M is 20 s locally, so the slowest do two
CHAIN_LATENCY_S = (0.02, 0.15)
SIGNATURES = 1 << 14  # remembered: of several rounds of the largest swarm
INCLUSION_S = 0.3  # until a write is seen by whoever makes the next block


@dataclass(frozen=True, slots=True)
class Speed:
    """What differs between machines, drawn from the seed and the node's name."""

    step_s: float
    chain_latency_s: float


@dataclass
class World:
    options: SimOptions
    root: Path
    manifest: RunManifest
    ledger: Ledger
    links: Links
    switch: MemorySwitch
    recorder: Recorder
    engine: Engine
    cheats: Mapping[str, Any] = field(default_factory=dict)  # node -> adversaries/stage.py's Staged
    outage: Callable[[], bool] = field(default=lambda: False)  # nobody reaches the chain
    # What is a function of bytes alone is found out once for all nodes.
    verify: Verify = field(default_factory=lambda: lru_cache(SIGNATURES)(verify))
    verify_peer: VerifyPeer = field(default_factory=lambda: lru_cache(SIGNATURES)(verify_peer))

    def key(self, name: str) -> LocalKey:
        return LocalKey(derive_keypair(self.options.seed, name))

    def identity(self, name: str) -> PeerIdentity:
        return identity(self.options.seed, name)

    def speed(self, name: str) -> Speed:
        draw = random.Random(f"speed/{self.options.seed}/{name}")
        step_s, latency_s = draw.uniform(*STEP_S), draw.uniform(*CHAIN_LATENCY_S)
        return Speed(STEP_S[0] if self.options.equal or self.options.adversaries else step_s, latency_s)

    def config(self, name: str, uid: int) -> NodeConfig:
        return node_config(self.root, self.manifest, name, uid, self.options)

    def block_time(self, block: int) -> float:
        """Virtual seconds at which a block begins; the clock starts at 0."""
        return block * self.ledger.params.block_s

    def register(self, name: str) -> None:
        """A newcomer buys its uid, in the next block."""
        coldkey = derive_coldkey(self.options.seed, WALLET).ss58_address
        hotkey = self.key(name).hotkey
        self.ledger.fund(coldkey, 1.0)
        args = {"netuid": self.manifest.netuid, "hotkey": hotkey}
        self.ledger.write("SubtensorModule", "burned_register", coldkey, args)


def role_of(name: str) -> Role:
    kind = name.partition("-")[0]
    return {"owner": Role.OWNER, "validator": Role.VALIDATOR}.get(kind, Role.MINER)


def identity(seed: int, name: str) -> PeerIdentity:
    return PeerIdentity(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=32, person=b"dt-peer-key").digest())


def node_config(root: Path, manifest: RunManifest, name: str, uid: int, options: SimOptions) -> NodeConfig:
    """The address goes on chain as everywhere; nobody listens there."""
    return NodeConfig(
        preset="local",
        netuid=manifest.netuid,
        run_dir=root,
        subtensor={"network": "local"},  # peers are not all over the Internet
        device="cpu",
        wallet={"name": WALLET, "hotkey": name, "path": root / "wallets"},
        axon={"ip": "127.0.0.2", "port": 20_000 + uid},
        rounds=options.rounds,
        steps_per_round=options.steps,
        act_on_head=options.act_on_head,
    )  # type: ignore[call-arg]


def make_world(options: SimOptions, root: Path, out: TextIO | None = None) -> World:
    """Everything at block 0, the clock not started. `out` takes every event of every node, a JSON line each."""
    manifest = make_run(options, root)
    config = node_config(root, manifest, "owner", 0, options)
    profile = LOSSY if options.faults in ("loss", "all") else CALM
    links = Links(options.seed, profile if options.setting is None else options.setting.links)
    return World(
        options=options,
        root=root,
        manifest=manifest,
        ledger=_genesis(options, manifest),
        links=links,
        switch=MemorySwitch(links),
        recorder=Recorder(str(root), out),
        engine=load_engine(config, manifest, LocalPages(root / "pages")),
        cheats=_cheats(options, root),
    )


def _cheats(options: SimOptions, root: Path) -> dict[str, Any]:
    uids = {name: uid for uid, name in enumerate(options.genesis_names())}
    cheats = options.cheats()
    fellows = {a.name: tuple(uids[n] for n, other in cheats.items() if other == a) for a in cheats.values()}
    victim = root / "nodes" / "miner-0"
    return {name: staged(a, fellows[a.name], victim_dir=victim) for name, a in cheats.items()}


def _genesis(options: SimOptions, manifest: RunManifest) -> Ledger:
    coldkey = derive_coldkey(options.seed, WALLET).ss58_address
    hotkeys = {name: LocalKey(derive_keypair(options.seed, name)).hotkey for name in options.genesis_names()}
    params = ChainParams(
        seed=options.seed,
        block_s=read_preset("local").block_s if options.setting is None else options.setting.block_s,
        netuid=manifest.netuid,
        tempo=manifest.timing.length,
        weights_rate_limit=2,
        version_key=manifest.version_key,
        max_uids=manifest.max_uids,
        max_validators=64,
        serving_rate_limit=0,
        immunity_period=1 << 20,
        burn_rao=REGISTRATION_RAO,
        owner_hotkey=hotkeys["owner"],
        owner_coldkey=coldkey,
    )
    neurons = []
    for name, hotkey in hotkeys.items():
        stakes = role_of(name) is Role.VALIDATOR
        neurons.append(GenesisNeuron(hotkey, coldkey, STAKE if stakes else 0.0, stakes))
    return Ledger(params, neurons, finality=manifest.timing.finality)
