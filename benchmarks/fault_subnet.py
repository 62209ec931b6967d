"""The subnet of the faults benchmark: real processes over loopback, a small model, rounds of sixteen seconds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_cells import Trial
from distributed_training.chain.keys import derive_coldkey, derive_keypair, write_wallet
from distributed_training.chain.local.genesis import GenesisNeuron, create_chain
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.words import write_words
from distributed_training.localnet.layout import REPOSITORY, WALLET, NodeSpec, RunPaths
from distributed_training.localnet.run.processes import node_command
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.recipes.build import make_manifest
from distributed_training.settings.flags import merge

SEED = 11
STAKE = 1000.0  # of each validator: the two honest ones are the majority
STEPS = 4  # inner steps a round
HONEST = ("owner", *(f"validator-{i}" for i in range(2)), *(f"miner-{i}" for i in range(5)))
MODEL: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 257, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 2,
}  # fmt: skip
# 118,000 parameters in 231 chunks; a round takes 32 blocks. Chunks are small so that a slice has many of them.
OVERRIDES: dict[str, Any] = {
    "name": "faults",
    "max_uids": 72,
    "data": {"sequence_length": 32, "batch_size": 4, "heldout_sequences": 16},
    "inner": {"nominal_steps": STEPS, "max_steps": 16, "learning_rate": 4e-3, "warmup_steps": 4},
    "average": {"chunk_coords": 512, "block_coords": 64, "token_cap": 64 * 128, "initial_tau": 50.0},
    "audit": {"full_share": 0.02, "probe_chunks": 4},
    "timing": {
        "first_block": 8, "finality": 2, "roster_lead": 3, "commit_margin": 3, "commit": 9, "reduce_margin": 3,
        "output": 19, "map": 27, "length": 32, "transfer": 3, "overlap": False,
    },
    "keep": {"work_rounds": 128, "output_rounds": 128},
}  # fmt: skip
PAGE_BYTES = 800
DOCUMENTS = 700


@dataclass(frozen=True, slots=True)
class FaultSubnet:
    paths: RunPaths
    manifest: RunManifest
    block_s: float
    honest: tuple[NodeSpec, ...]
    saboteurs: dict[str, NodeSpec]

    @property
    def round_s(self) -> float:
        return self.manifest.timing.length * self.block_s

    def command(self, spec: NodeSpec, trial: Trial | None, rounds: int) -> list[str]:
        """How a node is started; with a trial, the saboteur's own flags too."""
        command = node_command(spec, self.paths, self.honest, rounds)
        if trial is None:
            return command
        # A validator holds all slices before its map: what is lost is the next one.
        seconds = self.round_s * (1.5 if trial.cell.validator else 1)
        return [
            *command, "--role", spec.role.name.lower(), "--fault", trial.cell.fault, "--point", trial.cell.point,
            "--fault-round", str(trial.round), "--fault-seconds", f"{seconds:.1f}",
        ]  # fmt: skip


def create(
    root: Path,
    saboteurs: Sequence[str],
    block_s: float,
    port_base: int,
    honest: Sequence[str] = HONEST,
    overrides: Mapping[str, Any] | None = None,
) -> FaultSubnet:
    """A run directory and a chain at block 0, its clock not started; every saboteur has a uid of its own."""
    paths = RunPaths(root)
    write_words(root / "text", random.Random(SEED), DOCUMENTS)
    build_pages(paths.pages, root / "text", num_pages=None, page_bytes=PAGE_BYTES, heldout_bytes=4000)
    public = {"run_key": bytes(derive_keypair(SEED, "owner").public_key).hex()}
    fields = merge(OVERRIDES, overrides or {}, {"public": public})
    manifest = make_manifest("local", MODEL, LocalPages(paths.pages), init_seed=SEED, overrides=fields)
    paths.manifest.write_bytes(manifest.canonical())
    specs = [_spec(name, uid, port_base) for uid, name in enumerate([*honest, *saboteurs])]
    for spec in specs:
        write_wallet(paths.wallets, WALLET, spec.name, SEED)
    coldkey = derive_coldkey(SEED, WALLET).ss58_address
    create_chain(
        paths.chain,
        seed=SEED,
        block_s=block_s,
        netuid=manifest.netuid,
        tempo=manifest.timing.length,
        weights_rate_limit=20,
        version_key=manifest.version_key,
        max_uids=manifest.max_uids,
        owner_hotkey=derive_keypair(SEED, "owner").ss58_address,
        owner_coldkey=coldkey,
        neurons=[
            GenesisNeuron(
                derive_keypair(SEED, s.name).ss58_address,
                coldkey,
                STAKE if s.role is Role.VALIDATOR else 0.0,
                s.role is Role.VALIDATOR,
            )
            for s in specs
        ],
    )
    return FaultSubnet(
        paths,
        manifest,
        block_s,
        tuple(s for s in specs if s.name in honest),
        {s.name: s for s in specs if s.name in saboteurs},
    )


def _spec(name: str, uid: int, port_base: int) -> NodeSpec:
    role = Role.OWNER if name == "owner" else Role.VALIDATOR if "validator" in name else Role.MINER
    script = REPOSITORY / "neurons" / f"{role.name.lower()}.py"
    return NodeSpec(
        name=name,
        role=role,
        uid=uid,
        port=port_base + uid,
        steps=STEPS if role is Role.MINER else None,
        exact_steps=False,
        adversary=None,
        script=REPOSITORY / "adversaries" / "saboteur.py" if name.startswith("saboteur") else script,
    )
