"""Attacks as real nodes in virtual time: none earns what it did not work for, and nobody else is the worse for it.

The numbers, one attack at a time and with two of them, are those of scripts/bench.py; here several share one swarm.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from stage import parse
from tail import Tail

from benchmarks.adversaries_swarm import Group, failures, swarm_row
from distributed_training.errors import ConfigError
from distributed_training.localnet.attacks import Adversary, known_attacks
from distributed_training.protocol.types import Role
from distributed_training.roles.auditing.buffers import NOT_LEFT
from distributed_training.simulation.options import SimOptions
from distributed_training.simulation.pay import PAID_AFTER, earned
from distributed_training.simulation.swarm import SimResult, simulate

ROUNDS, STEPS = 5, 8
WORK = ("copycat", "free-rider", "frozen-layers", "half-batch", "other-data", "replayer", "short-sequences", "zeros")
OTHERS = ("omitter", "picky", "silent", "skipper", "withholder")
FEEDBACK = ("coast-on-feedback", "hider", "hoarder")
HARM = ("key-squatter", "resigner", "slow-prober", "snapshot-hog")


@cache
def swarm(names: tuple[str, ...], honest: int, validators: int = 1, rounds: int = ROUNDS) -> SimResult:
    """So many honest miners and validators, and one of each attack."""
    attacks = [Adversary(known_attacks()[name], 1) for name in names]
    cheats = {role: sum(a.attack.role is role for a in attacks) for role in Role}
    miners, watching = honest + cheats[Role.MINER], validators + cheats[Role.VALIDATOR]
    return simulate(SimOptions(miners, rounds, validators=watching, steps=STEPS, adversaries=tuple(attacks)))


def uid(result: SimResult, attack: str) -> int:
    names = result.options.genesis_names()
    return next(names.index(name) for name, a in result.options.cheats().items() if a.name == attack)


def untouched(result: SimResult) -> None:
    """Every round is applied, every honest node has settled it with one root, and honest pay follows the work."""
    cheats, names = set(result.options.cheats()), result.options.genesis_names()
    assert [v for v in result.violations if not set(v.nodes) <= cheats] == []
    assert all(row.applied for row in result.rows)
    honest = [u for u, name in enumerate(names) if name.startswith("miner") and name not in cheats]
    assert [a for a in result.failed if a.target in honest] == []
    paid = [sum(pay.get(u, 0.0) for pay in result.pay[PAID_AFTER - 1 :]) for u in honest]
    assert max(paid) <= 1.05 * min(paid) and min(paid) > 0


@pytest.mark.parametrize("attack", WORK)
def test_work_that_is_not_done_is_found_at_its_first_audit_and_earns_nothing(attack: str) -> None:
    result = swarm(WORK, honest=4)
    found = earned(result, [uid(result, attack)])
    assert found.share_of_honest == 0.0
    assert found.detected_after_rounds == (2 if attack in ("copycat", "replayer") else 1)


def test_honest_miners_among_them_are_paid_for_their_work_alone() -> None:
    untouched(swarm(WORK, honest=4))


@pytest.mark.parametrize("attack", FEEDBACK)
def test_a_feedback_buffer_holds_back_nothing_and_passes_for_no_work(attack: str) -> None:
    result = swarm(FEEDBACK, honest=4)
    found = earned(result, [uid(result, attack)])
    assert found.share_of_honest == 0.0
    reasons = {a.reason for a in result.failed if a.target == uid(result, attack)}
    if attack == "hider":
        assert reasons <= {"direction"}
    else:
        assert found.detected_after_rounds == (2 if attack == "coast-on-feedback" else 1)
        assert reasons <= ({"direction", "vector", "vector norm"} if attack == "coast-on-feedback" else {NOT_LEFT})


def test_honest_miners_with_feedback_are_paid_for_their_work_alone() -> None:
    untouched(swarm(FEEDBACK, honest=4))


@pytest.mark.parametrize("attack", OTHERS)
def test_who_leaves_others_out_or_gives_nothing_earns_no_more_than_its_share(attack: str) -> None:
    result = swarm(OTHERS, honest=6)
    share = earned(result, [uid(result, attack)]).share_of_honest
    assert share is not None and share <= 1.05


def test_nobody_loses_pay_to_them() -> None:
    untouched(swarm(OTHERS, honest=6))


def test_who_disturbs_disturbs_nobody() -> None:
    untouched(swarm((*HARM, "accuser", "map-liar", "outside-uid"), honest=3, validators=2, rounds=4))


def test_a_row_of_the_table_holds_an_attack_against_the_same_swarm_without_it() -> None:
    options = SimOptions(3, ROUNDS, validators=1, steps=STEPS, equal=True)
    group = Group(known_attacks()["free-rider"], 1)
    cheated = simulate(replace(options, adversaries=(Adversary(group.attack, 1),)))
    row = swarm_row(group, cheated, simulate(options))
    assert row == {
        "attack": "free-rider",
        "class": "a",
        "group": "1 of 3",
        "detected_after_rounds": 1,
        "share_of_honest": 0.0,
        "pay_per_compute": 0.0,
        "harm_to_honest": 0.0,
        "false_accusations": 0,
        "failures": [],
    }
    wrong = row | {"share_of_honest": 0.2, "harm_to_honest": 0.06, "false_accusations": 1}
    assert failures(wrong, cheated) == [
        "0.20 of an honest miner's pay, expected under 0.1",
        "an honest miner lost 6.0%, expected at most 5%",
        "1 failed audits of honest miners",
    ]
    assert failures(row | {"class": "b", "pay_per_compute": 1.04}, cheated) != []
    assert failures(row | {"class": "c", "pay_per_compute": 1.06}, cheated) != []


def test_the_attack_that_the_document_adds_runs_as_it_stands_there_and_is_found(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "adversaries.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "echo.py").write_text(code, "utf-8")
    echo = Adversary(known_attacks(tmp_path)["echo"], 1)
    result = simulate(SimOptions(3, 2, validators=1, steps=STEPS, adversaries=(echo,)))
    untouched(result)
    assert {(a.target, a.failed_step) for a in result.failed} == {(uid(result, "echo"), 1)}


def test_an_attack_takes_its_own_flags_and_leaves_the_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    attack, rest = parse(Tail, ["--k", "3", "--fellows", "4,5", "--netuid", "7"])
    assert (vars(attack)["k"], attack.fellows, rest) == (3, (4, 5), ["--netuid", "7"])
    with pytest.raises(ConfigError, match="--k: invalid int value: 'ten'"):
        parse(Tail, ["--k", "ten"])
    with pytest.raises(SystemExit):
        parse(Tail, ["--help"])
    assert "--k K" in capsys.readouterr().out
