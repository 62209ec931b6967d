"""The attacks that lie in adversaries/: what each is, read from its file without running it.

One attack is one file: the first line of its docstring says whose program it is and what it does, `CLASS` of what kind
it is, `EVIDENCE` where it shows. The demo, the simulator, the tests and the benchmark of pay all know them from here.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.errors import ConfigError
from distributed_training.protocol.types import Role
from distributed_training.settings.words import nearest

ADVERSARIES_DIR = Path(__file__).resolve().parents[2] / "adversaries"
CLASSES = {
    "a": "work not done",
    "b": "work partly done",
    "c": "senders and reducers against others",
    "harm": "others' rounds, not pay",
}
EVIDENCE = {
    "audit": "a failed audit, with its step and error",
    "reducer": "senders that its slices lack, and its duty",
    "slice": "its slices that did not count",
    "probe": "probes without an answer",
    "credit": "less credit than any honest miner",
    "none": "nothing: it is to change nothing for others",
}


@dataclass(frozen=True, slots=True)
class AttackFile:
    name: str  # with dashes
    script: Path
    kind: str  # a key of CLASSES
    role: Role
    line: str  # what it does
    evidence: str = "none"  # a key of EVIDENCE
    honest_share: float = 0.0  # of the steps, before it begins to cheat
    first_is_honest: bool = False  # of several that run it
    simulated: bool = False  # only in the simulator: the demo has no such subnet, or its node ends by itself
    run: str = ""  # KEY=VALUE: a constant of the run that it is about


@dataclass(frozen=True, slots=True)
class Adversary:
    """So many nodes run one attack."""

    attack: AttackFile
    count: int

    def __str__(self) -> str:
        return f"{self.attack.name}:{self.count}"


def known_attacks(directory: Path = ADVERSARIES_DIR) -> dict[str, AttackFile]:
    """By name; files without a CLASS are no attacks."""
    found = (_read(path) for path in sorted(directory.glob("*.py")))
    return {attack.name: attack for attack in found if attack is not None}


def _read(path: Path) -> AttackFile | None:
    tree = ast.parse(path.read_text("utf-8"))
    said: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            said |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    if said.get("CLASS") not in CLASSES:
        return None
    role, _, line = (ast.get_docstring(tree) or "").partition("\n")[0].partition(": ")
    return AttackFile(
        path.stem.replace("_", "-"),
        path,
        said["CLASS"],
        Role[role.upper()],
        line,
        said["EVIDENCE"],
        said.get("HONEST_SHARE", 0.0),
        said.get("FIRST_IS_HONEST", False),
        said.get("SIMULATED", False),
        said.get("RUN", ""),
    )


def constants_of(adversaries: Iterable[Adversary]) -> tuple[str, ...]:
    """KEY=VALUE, of the runs that these attacks are about."""
    return tuple(dict.fromkeys(a.attack.run for a in adversaries if a.attack.run))


def in_demo(adversaries: Sequence[Adversary]) -> tuple[Adversary, ...]:
    """Raises ConfigError for one that real processes cannot run."""
    for name in (a.attack.name for a in adversaries if a.attack.simulated):
        raise ConfigError(
            f"argument --adversary: {name} runs in the simulator alone: "
            f"python -m distributed_training.simulation --adversary {name}"
        )
    return tuple(adversaries)


def chosen(texts: Sequence[str], nodes: Mapping[Role, int], directory: Path = ADVERSARIES_DIR) -> tuple[Adversary, ...]:
    """What `--adversary NAME[:COUNT]` asks for among so many nodes of each role. Raises ConfigError."""
    known, found = known_attacks(directory), list[Adversary]()
    for text in texts:
        adversary = _chosen(text, known, nodes)
        if any(adversary.attack == other.attack for other in found):
            name = adversary.attack.name
            raise ConfigError(
                f"argument --adversary: {name} is given twice; say how many with --adversary {name}:COUNT"
            )
        found.append(adversary)
    for role, number in nodes.items():
        cheats = sum(a.count for a in found if a.attack.role is role)
        if cheats >= number:
            what = f"{role.name.lower()}s"
            raise ConfigError(f"argument --adversary: {cheats} of {number} {what} would cheat; expected more --{what}")
    return tuple(found)


def _chosen(text: str, known: Mapping[str, AttackFile], nodes: Mapping[Role, int]) -> Adversary:
    name, _, count = text.partition(":")
    if name not in known:
        raise ConfigError(
            f"argument --adversary: expected one of {', '.join(known)}, not {name!r}{nearest(name, list(known))}"
        )
    most = max(1, nodes[known[name].role] - 1)
    if count and not (count.isdigit() and 1 <= int(count) <= most):
        raise ConfigError(f"argument --adversary: expected a count from 1 to {most}, not {count!r}")
    return Adversary(known[name], int(count or 1))


def listing(directory: Path = ADVERSARIES_DIR) -> str:
    """All of them, a line each, by class."""
    lines: list[str] = []
    for kind, what in CLASSES.items():
        lines.append(f"  {kind}: {what}")
        attacks = [a for a in known_attacks(directory).values() if a.kind == kind]
        lines += [f"    {a.name:<15} {'' if a.role is Role.MINER else 'validator: '}{a.line}" for a in attacks]
    return "\n".join(lines)


def staged(attack: AttackFile, fellows: Sequence[int], **settings: Any) -> Any:
    """The attack as `adversaries/stage.py` puts it into a node: for many nodes in one process."""
    folder = str(attack.script.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    frame, stage = importlib.import_module("attack"), importlib.import_module("stage")
    module = importlib.import_module(attack.script.stem)
    mine = (kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__)
    made = next(kind for kind in mine if issubclass(kind, frame.Attack))
    return stage.Staged(made(fellows=tuple(fellows), **settings))
