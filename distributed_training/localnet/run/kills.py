"""Which node dies when: `--kill ROLE@PHASE[:ROUND]` read and spread over the rounds. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed_training.errors import ConfigError
from distributed_training.settings.words import nearest

RECOVERY_ROUNDS = 2  # within which a killed node has to be back
FIRST_ROUND = 1  # round 0 is everybody's first: nobody could tell a killed node from one that loads slowly
# Phase events that a node of each role emits (roles/*.py), in the order of a round.
PHASES: Mapping[str, tuple[str, ...]] = {
    "miner": ("train", "commit", "average", "settle"),
    "validator": ("train", "average", "map", "settle", "audit"),
    "owner": ("train", "average", "settle"),
}


@dataclass(frozen=True, slots=True)
class KillRequest:
    """As asked for; `name` None: any node of the role, `round` None: any round that leaves time to recover."""

    role: str
    name: str | None
    phase: str
    round: int | None

    def __str__(self) -> str:
        return f"{self.name or self.role}@{self.phase}" + ("" if self.round is None else f":{self.round}")


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to `name` when it says that `phase` of `round` (or of a later one, should it sit that out) begins."""

    name: str
    role: str
    phase: str
    round: int


def parse_kill(text: str, nodes: Mapping[str, str]) -> KillRequest:
    """`nodes`: name -> role. Raises ConfigError in one line."""
    where = f"argument --kill: {text!r}"
    target, at, rest = text.partition("@")
    if not at:
        raise ConfigError(f"{where}: expected ROLE@PHASE or ROLE@PHASE:ROUND, like miner@train")
    phase, colon, number = rest.partition(":")
    role = target if target in PHASES else nodes.get(target)
    if role is None:
        raise ConfigError(
            f"{where}: expected miner, validator, owner or one of {', '.join(nodes)}, not {target!r}"
            f"{nearest(target, [*PHASES, *nodes])}"
        )
    if phase not in PHASES[role]:
        hint = nearest(phase, PHASES[role])
        raise ConfigError(f"{where}: the phases of a {role} are {', '.join(PHASES[role])}, not {phase!r}{hint}")
    if colon and not number.isdigit():
        raise ConfigError(f"{where}: expected a round, a whole number, not {number!r}")
    return KillRequest(role, target if target in nodes and target != "owner" else None, phase, _number(number))


def _number(text: str) -> int | None:
    return int(text) if text else None


def plan_kills(requests: Sequence[KillRequest], nodes: Mapping[str, str], rounds: int, seed: int) -> tuple[Kill, ...]:
    """One kill a round at most unless rounds are named, evenly over rounds 1 to `rounds` - 3, each of another node.

    `nodes`: name -> role, of those that may be chosen; `rounds`: rounds to run, from round 0 on. Order, rounds and
    nodes follow from `seed`. Raises ConfigError when there is no room, or when one node would have to die again before
    it had time to recover.
    """
    last = rounds - 1 - RECOVERY_ROUNDS
    rng = random.Random(seed)
    fixed = [(r, r.round) for r in requests if r.round is not None]
    for request, index in fixed:
        if not FIRST_ROUND <= index <= last:
            raise ConfigError(f"argument --kill: {request}: {room(last, rounds)}")
    free = [r for r in requests if r.round is None]
    rng.shuffle(free)
    slots = [index for index in range(FIRST_ROUND, last + 1) if index not in {i for _, i in fixed}]
    if len(free) > len(slots):
        raise ConfigError(
            f"argument --kill: {len(requests)} kills, one a round, need at least "
            f"--rounds {rounds + len(free) - len(slots)}, not {rounds}"
        )
    chosen = [slots[(2 * i + 1) * len(slots) // (2 * len(free))] for i in range(len(free))]
    timed = sorted([*fixed, *zip(free, chosen, strict=True)], key=lambda item: item[1])
    return _named(timed, nodes, rng)


def room(last: int, rounds: int) -> str:
    if last < FIRST_ROUND:
        needs = f"a killed node needs {RECOVERY_ROUNDS} rounds to recover"
        return f"{needs}: expected --rounds {RECOVERY_ROUNDS + 2} or more, not {rounds}"
    return f"expected a round from {FIRST_ROUND} to {last}, so that there is time to recover"


def _named(timed: Sequence[tuple[KillRequest, int]], nodes: Mapping[str, str], rng: random.Random) -> tuple[Kill, ...]:
    """A node for each, in round order: those nobody asked for by name first, then whoever was killed longest ago."""
    order = list(nodes)
    rng.shuffle(order)
    asked = {request.name for request, _ in timed}
    killed: dict[str, int] = {}
    kills: list[Kill] = []
    for request, index in timed:
        able = [n for n in order if nodes[n] == request.role]
        if not able:
            raise ConfigError(f"argument --kill: {request}: this run has no such node that could be chosen")
        name = request.name or min(able, key=lambda n: (killed.get(n, -1), n in asked, order.index(n)))
        if name in killed and index - killed[name] <= RECOVERY_ROUNDS:
            raise ConfigError(
                f"argument --kill: {name} would die in round {killed[name]} and again in round {index}, before it had "
                f"{RECOVERY_ROUNDS} rounds to recover; expected fewer kills of a {request.role}, or more --rounds"
            )
        killed[name] = index
        kills.append(Kill(name, request.role, request.phase, index))
    return tuple(kills)
