"""Attacks as real nodes on the real rules, in virtual time: what each earned for what it really computed.

Every row is one simulated swarm with the attack, held against the same swarm, seed and speeds without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distributed_training.localnet.attacks import Adversary, AttackFile, constants_of, known_attacks
from distributed_training.protocol.types import Role
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.pay import PAID_AFTER, earned
from distributed_training.simulation.swarm import SimResult, simulate

MINERS, VALIDATORS, ROUNDS, STEPS = 8, 2, 12, 8
COUNTS = {"sybil": (2,), "splitter": (2,), "slow-prober": (3,)}  # one alone is no attack
NOT_DONE_MOST = 0.10  # of an honest miner's pay, for work that is not done
PER_COMPUTE_MOST = 1.0
COLLUSION_MOST = 1.05
HARM_MOST = 0.05
NOISE = 0.03  # of a share, by the few rounds of a swarm and steps on a grain of time

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """So many of the miners, or validators, run the attack."""

    attack: AttackFile
    count: int


def groups(names: Sequence[str] = ()) -> list[Group]:
    """Every known attack by one of MINERS, those that others might pay for by two of them, too; `names`: only these."""
    chosen = [a for name, a in known_attacks().items() if not names or name in names]
    return [Group(a, count) for a in chosen for count in COUNTS.get(a.name, (1, 2) if a.kind in ("a", "c") else (1,))]


def swarm_rows(
    names: Sequence[str] = (),
    *,
    rounds: int = ROUNDS,
    seed: int = 1,
    miners: int = MINERS,
    validators: int = VALIDATORS,
    progress: Callable[[Row], None] = lambda row: None,
) -> Iterator[Row]:
    """{attack, class, group, detected_after_rounds, share_of_honest, pay_per_compute, harm_to_honest,
    false_accusations, failures}; `failures` is a list of what did not hold."""
    honest = SimOptions(miners, rounds, seed=seed, validators=validators, steps=STEPS, equal=True)
    without = dict[tuple[str, ...], SimResult]()
    for group in groups(names):
        cheats = (Adversary(group.attack, group.count),)
        same = constants_of(cheats)  # the run that it is about, without it
        without[same] = without[same] if same in without else simulate(replace(honest, constants=same))
        row = swarm_row(group, simulate(replace(honest, adversaries=cheats)), without[same])
        progress(row)
        yield row


def swarm_row(group: Group, result: SimResult, without: SimResult) -> Row:
    cheats, names = result.options.cheats(), result.options.genesis_names()
    uids = [names.index(name) for name in cheats]
    miner = group.attack.role is Role.MINER
    found = earned(result, uids)
    row: Row = {
        "attack": group.attack.name,
        "class": group.attack.kind,
        "group": f"{group.count} of {result.options.miners if miner else result.options.validators}",
        "detected_after_rounds": found.detected_after_rounds if miner else None,
        "share_of_honest": found.share_of_honest if miner else None,
        "pay_per_compute": found.pay_per_compute if miner else None,
        "harm_to_honest": harm(result, without),
        "false_accusations": found.false_accusations,
    }
    return row | {"failures": failures(row, result)}


def harm(result: SimResult, without: SimResult) -> float:
    """The largest share that any honest miner lost of what it was paid in the same swarm without the attack."""
    names, cheats = result.options.genesis_names(), result.options.cheats()
    honest = [uid for uid, name in enumerate(names) if name.startswith("miner") and name not in cheats]
    lost = [1.0 - total(result, uid) / total(without, uid) for uid in honest]
    return max(0.0, *lost)


def total(result: SimResult, uid: int) -> float:
    return sum(pay.get(uid, 0.0) for pay in result.pay[PAID_AFTER - 1 :])


def failures(row: Row, result: SimResult) -> list[str]:
    """What did not hold of a row."""
    share, per_compute, found = row["share_of_honest"], row["pay_per_compute"], list[str]()
    if row["class"] == "a" and share is not None and share >= NOT_DONE_MOST:
        found.append(f"{share:.2f} of an honest miner's pay, expected under {NOT_DONE_MOST}")
    if row["class"] == "b" and per_compute is not None and per_compute > PER_COMPUTE_MOST + NOISE:
        found.append(f"{per_compute:.2f} of honest pay per step computed, expected at most {PER_COMPUTE_MOST}")
    if row["class"] in ("c", "harm") and per_compute is not None and per_compute > COLLUSION_MOST:
        found.append(f"{per_compute:.2f} of its fair share, expected at most {COLLUSION_MOST}")
    if row["harm_to_honest"] > HARM_MOST:
        found.append(f"an honest miner lost {row['harm_to_honest']:.1%}, expected at most {HARM_MOST:.0%}")
    if row["false_accusations"]:
        found.append(f"{row['false_accusations']} failed audits of honest miners")
    undone = [r.round for r in result.rows if not r.applied]
    if undone:
        found.append(f"rounds {undone} were not applied")
    cheats = set(result.options.cheats())
    told = (v for v in result.violations if not v.nodes or not set(v.nodes) <= cheats)
    return found + [f"round {v.round}: {', '.join(v.nodes)}: {v.what}" for v in told]
