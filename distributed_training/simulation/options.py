"""What a simulation is asked to do, and the run that follows from it: model, manifest, pages, names."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.chain.keys import derive_keypair
from distributed_training.commands import quoted
from distributed_training.data.local import LocalPages, build_pages
from distributed_training.data.words import write_words
from distributed_training.errors import ConfigError
from distributed_training.localnet.attacks import Adversary, AttackFile, constants_of
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.recipes.build import make_manifest
from distributed_training.settings.arguments import assignment
from distributed_training.settings.flags import merge
from distributed_training.simulation.kinds import FAULTS, FaultKind
from distributed_training.simulation.setting import Setting
from distributed_training.training.model import model_size

MAX_UIDS = 1024
PAGE_BYTES = 150  # tokens of a few steps: nobody needs more than two pages a round
OUTSIDE = "outside-uid"  # the attack that wants a larger subnet than the manifest's
SPARE_UIDS = 8  # and a tenth of the miners: for those who join


@dataclass(frozen=True, slots=True)
class SimOptions:
    """`seed` decides everything: keys, links, speeds, faults."""

    miners: int
    rounds: int
    faults: FaultKind = "none"
    seed: int = 0
    validators: int = 2
    width: int = 16  # of the model: 16 gives about 8 thousand parameters
    steps: int = 3  # inner steps a round, of miners fast enough
    min_slices: int = 0  # at least so many chunks, whatever the number of miners
    adversaries: tuple[Adversary, ...] = ()  # the last miners, or validators, in this order
    act_on_head: bool = True  # of all nodes
    setting: Setting | None = None  # None: local rounds over drawn links
    equal: bool = False  # all nodes are equally fast; with adversaries they always are
    constants: tuple[str, ...] = ()  # of the run, KEY=VALUE
    watched: int | None = None  # ends after so many rounds, in the middle of the next one; None: after the last

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.miners < 1 or self.validators < 1 or self.rounds < 1 or self.steps < 1:
            raise ConfigError("a simulation needs at least one miner, one validator, one round and one step")
        if self.faults not in FAULTS:
            raise ConfigError(f"faults {self.faults!r}: expected one of {', '.join(FAULTS)}")
        if self.width < 2 or self.width % 2:
            raise ConfigError(f"the model's width is an even number of at least 2, for its two heads, not {self.width}")
        if self.names_count + self.spare > MAX_UIDS:
            raise ConfigError(f"at most {MAX_UIDS} uids are simulated; {self.miners} miners are too many")

    @property
    def names_count(self) -> int:
        return 1 + self.validators + self.miners

    @property
    def spare(self) -> int:
        return 0 if self.outside else SPARE_UIDS + self.miners // 10

    @property
    def outside(self) -> int:
        """Nodes of the genesis whose uids the manifest does not count: the last ones."""
        return sum(a.count for a in self.adversaries if a.attack.name == OUTSIDE)

    def genesis_names(self) -> tuple[str, ...]:
        """In uid order; the owner has uid 0."""
        validators = [f"validator-{i}" for i in range(self.validators)]
        return ("owner", *validators, *(f"miner-{i}" for i in range(self.miners)))

    def cheats(self) -> dict[str, AttackFile]:
        """Node name -> what it runs instead of the honest program."""
        found: dict[str, AttackFile] = {}
        for role, count in ((Role.MINER, self.miners), (Role.VALIDATOR, self.validators)):
            attacks = [a.attack for a in self.adversaries if a.attack.role is role for _ in range(a.count)]
            names = [f"{role.name.lower()}-{count - len(attacks) + i}" for i in range(len(attacks))]
            found |= dict(zip(names, attacks, strict=True))
        return found

    def command(self) -> str:
        """The command that runs this simulation again."""
        shown = f"python -m distributed_training.simulation --miners {self.miners} --rounds {self.rounds}"
        shown += f" --faults {self.faults} --seed {self.seed}"
        for name, value, default in (
            ("validators", self.validators, 2), ("width", self.width, 16), ("steps", self.steps, 3),
        ):  # fmt: skip
            shown += "" if value == default else f" --{name} {value}"
        shown += "" if self.act_on_head else " --no-act-on-head"
        shown += "".join(f" --adversary {adversary}" for adversary in self.adversaries)
        shown += "".join(f" --set {quoted(constant)}" for constant in self.constants)
        return shown


def model_config(width: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 257,
        "n_positions": 16,
        "n_embd": width,
        "n_layer": 1,
        "n_head": 2,
    }


def chunk_coords(num_coords: int, slices: int) -> int:
    """The largest multiple of 32, up to 512, that gives every reducer at least one chunk."""
    return max(32, min(512, num_coords // max(1, slices) // 32 * 32))


def overrides(options: SimOptions) -> Mapping[str, Any]:
    """Sections of the manifest that differ from the local ones; its timing is the local preset's."""
    chunk = chunk_coords(model_size(model_config(options.width)), max(options.miners, options.min_slices))
    made = {
        "name": "simulation",
        "max_uids": options.names_count + options.spare - options.outside,
        "public": {"run_key": bytes(derive_keypair(options.seed, "owner").public_key).hex()},
        "data": {"sequence_length": 16, "batch_size": 2, "heldout_sequences": 8},
        "inner": {
            "nominal_steps": options.steps, "max_steps": 8, "learning_rate": 5e-3, "warmup_steps": 1,
        },
        "average": {"chunk_coords": chunk, "block_coords": 32, "token_cap": 8 * 32, "initial_tau": 50.0},
        "audit": {"full_share": 0.1, "probe_chunks": 4},
        "keep": {"snapshot_every": 4, "checkpoint_every": 4},
    }  # fmt: skip
    if options.setting is not None:
        made = merge(made, options.setting.sections)
    return merge(made, *map(assignment, (*constants_of(options.adversaries), *options.constants)))


def make_run(options: SimOptions, root: Path) -> RunManifest:
    """Write text and pages below `root`; the manifest over them. The same options give the same manifest."""
    needed = 2 * (options.names_count + options.spare)
    write_words(
        root / "text", random.Random(f"text/{options.seed}"), documents=math.ceil(needed * PAGE_BYTES / 100) + 40
    )
    build_pages(root / "pages", root / "text", num_pages=needed, page_bytes=PAGE_BYTES, heldout_bytes=1000)
    pages = LocalPages(root / "pages")
    return make_manifest(
        "local", model_config(options.width), pages, init_seed=options.seed, overrides=overrides(options)
    )
