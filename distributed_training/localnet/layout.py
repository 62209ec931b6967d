"""The run directory: where everything lies, and which nodes there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distributed_training.localnet.attacks import AttackFile
from distributed_training.localnet.options import Options
from distributed_training.locks import Lock
from distributed_training.protocol.types import Role

WALLET = "local"
SPARE_HOTKEY = "extra"  # a wallet without a registration: for trying how a node joins
NEWCOMER = "newcomer"  # the node that comes in the middle of a run with --hub or --newcomer
ONE_DEMO = "one demo per run directory: wait for it or stop it, or give this one another --run-dir"
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One process of the demo. Its place in `node_specs` is its uid."""

    name: str  # hotkey name
    role: Role
    uid: int
    port: int
    steps: int | None  # inner steps a round; miners only
    exact_steps: bool
    adversary: str | None
    script: Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def chain(self) -> Path:
        return self.root / "chain.sqlite"

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    @property
    def wallets(self) -> Path:
        return self.root / "wallets"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report.png"

    @property
    def joined(self) -> Path:
        """The run directory of the newcomer, who gets nothing from this one."""
        return self.root / "joined"

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name


def lock_run(run_dir: Path) -> Lock:
    """For one demo at a time, from before the directory is there: the lock lies beside it. Raises ConfigError."""
    real = run_dir.resolve()
    return Lock(real.parent, ONE_DEMO, name=f".{real.name}.lock", shown=run_dir)


def node_specs(options: Options, repository: Path = REPOSITORY) -> tuple[NodeSpec, ...]:
    """Owner, validators, miners, in uid order."""
    neurons = repository / "neurons"
    specs = [NodeSpec("owner", Role.OWNER, 0, options.port_base, None, False, None, neurons / "owner.py")]
    for i, cheat in enumerate(_cheats(options, Role.VALIDATOR, options.validators)):
        uid = len(specs)
        name, script = (
            None if cheat is None else cheat.name,
            neurons / "validator.py" if cheat is None else cheat.script,
        )
        specs.append(
            NodeSpec(f"validator-{i}", Role.VALIDATOR, uid, options.port_base + uid, None, False, name, script)
        )
    cheats = _cheats(options, Role.MINER, options.miners)
    for steps, cheat in zip(options.steps_per_round, cheats, strict=True):
        uid = len(specs)
        specs.append(
            NodeSpec(
                name=f"miner-{uid - 1 - options.validators}",
                role=Role.MINER,
                uid=uid,
                port=options.port_base + uid,
                steps=steps,
                exact_steps=options.steps is not None and cheat is None,
                adversary=None if cheat is None else cheat.name,
                script=neurons / "miner.py" if cheat is None else cheat.script,
            )
        )
    return tuple(specs)


def _cheats(options: Options, role: Role, count: int) -> list[AttackFile | None]:
    """What each node of a role runs: None is the honest program; the last ones cheat."""
    cheats = [a.attack for a in options.adversaries if a.attack.role is role for _ in range(a.count)]
    return [*[None] * (count - len(cheats)), *cheats]


def miners(specs: Sequence[NodeSpec]) -> tuple[NodeSpec, ...]:
    return tuple(s for s in specs if s.role is Role.MINER)
