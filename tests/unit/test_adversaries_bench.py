"""The rules-level game of `scripts/bench.py adversaries`: that it plays by the rules, and what it promises, small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import adversaries
from benchmarks.adversaries import attacks, markdown
from benchmarks.adversaries_best import Game
from benchmarks.adversaries_game import Claim, Policy, incentive, play, rules, verdict
from benchmarks.adversaries_honest import rows_of_churn, rows_of_newcomers
from benchmarks.adversaries_policies import CLASS_A, honest, tail, then_absent
from benchmarks.adversaries_rows import Size, beside, failures, measured, row
from distributed_training.protocol.observed import Verdict
from distributed_training.protocol.rules.audit_plan import Depth

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/incentives.md"
AUDIT = rules(500).audit
SMALL = Size(rounds=60, cheats=6, seeds=2)


def test_a_dishonest_step_is_a_failure_where_it_is_replayed_and_only_there() -> None:
    claim = Claim(100, 7, 7)
    assert verdict(claim, Depth(0, False), AUDIT) is None
    seen = [verdict(claim, Depth(length, False), AUDIT) for length in (7, 8)]
    assert [None if a is None else a.verdict for a in seen] == [Verdict.PASS, Verdict.FAIL]


@pytest.mark.parametrize(
    ("agrees", "answers", "reasons"),
    [(1.0, True, "ok ok"), (0.5, True, "ok vector"), (0.0, True, "direction vector"), (-1.0, True, "direction vector"),
     (-1.0, False, "direction vector")],
)  # fmt: skip
def test_another_vector_is_seen_by_its_direction_where_its_chunks_come_and_by_full_audits(
    agrees: float, answers: bool, reasons: str
) -> None:
    claim = Claim(500, 500, 500, agrees=agrees, answers=answers)
    found = [verdict(claim, depth, AUDIT) for depth in (Depth(1, False), Depth(500, True))]
    assert [None if a is None else a.reason for a in found] == reasons.split()


def test_one_validators_failure_is_everybodys_and_pay_is_what_half_of_the_stake_supports() -> None:
    players = play(rules(500), [Policy(honest)] * 3 + [Policy(tail(20), renews=False)], [1.0] * 5, 30, 2)
    caught = players[3].caught
    assert caught and players[3].pay[caught[0] - 1 :] == [0.0] * (31 - caught[0])
    assert all(sum(p.pay[r] for p in players) == pytest.approx(1.0) for r in range(30))
    rows = [{"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}, {"a": 1.0}]
    assert incentive(rows, [1.0, 1.0, 1.0]) == {"a": 0.6, "b": 0.4}
    assert play(rules(500), [Policy(honest), Policy(tail(20))], [1.0], 9, 3)[1].pay != [0.5] * 9


@pytest.mark.parametrize("name", CLASS_A)
def test_work_not_done_earns_nothing(name: str) -> None:
    found = measured(play(rules(500), [Policy(honest)] * 6 + [CLASS_A[name]] * 2, [1.0, 2.0], 12, 1), 6, 2)
    assert (found.share, found.accused, found.detected) == (0.0, 0, 1.0)


@pytest.mark.parametrize("validators", [1, 5])
@pytest.mark.parametrize("done", [10, 200, 450])
def test_a_tail_that_is_invented_earns_less_than_the_work_it_took(done: int, validators: int) -> None:
    found = beside("tail", Policy(tail(done)), 500, validators, SMALL)
    assert found["pay_per_compute"] < 0.9 and found["false_accusations"] == 0


def test_to_cheat_for_a_few_rounds_and_to_leave_does_not_pay() -> None:
    away = Policy(then_absent(2, tail(200)), leaves_at=26)
    assert beside("away", away, 500, 1, SMALL)["pay_per_compute"] < 0.05


@pytest.mark.parametrize("steps", [100, 500, 2059])
@pytest.mark.parametrize("validators", [1, 5, 64])
def test_the_best_policy_of_all_is_to_be_honest(steps: int, validators: int) -> None:
    game = Game(rules(steps), validators)
    assert game.best().pay_per_compute < 0.96
    assert game.best(honest_when_ripe=True).pay_per_compute == 1.0


def test_with_less_of_any_of_three_rules_a_cheat_would_pay() -> None:
    """So the search can find one, and none of the three is there for nothing."""
    now = rules(500)
    audit, scoring = now.audit.model_copy, now.scoring.model_copy
    shallow, blind, early = (
        replace(now, audit=audit(update={"depth_share": 0.01})),
        replace(now, audit=audit(update={"newcomer_factor": 1.0})),
        replace(now, scoring=scoring(update={"vesting_rounds": 16})),
    )
    assert all(Game(worse, 5).best().pay_per_compute > 1.0 for worse in (shallow, blind, early))


def test_honest_miners_under_churn_are_paid_by_their_tokens_and_newcomers_in_time() -> None:
    (churn,) = rows_of_churn(1)
    assert churn["harm_to_honest"] < 0.05 and churn["false_accusations"] == 0
    assert next(rows_of_newcomers())["share_of_honest"] == 1.0  # rounds of 125 blocks


def test_what_is_more_than_it_may_be_is_a_failure() -> None:
    rows = [
        row("x", "a", "g", share=0.1),
        row("y", "b", "g", pay=1.2, error=0.05),
        row("z", "b", "g", pay=1.2, error=0.1),
        row("k", "honest", "g", pay=0.94),
        row("h", "honest", "g", pay=1.0, accused=1),
    ]
    assert [line.split(" (")[0] for line in failures(rows)] == ["x", "y", "k", "h"]


def test_the_document_shows_every_attack_of_the_code() -> None:
    text = DOCUMENT.read_text()
    table = text[text.index(adversaries.BEGIN) : text.index(adversaries.END)]
    shown = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert list(attacks()) == [name for name in shown if name in set(attacks())]
    assert any("best policy of all that cheat" in name for name in shown) and any("collud" in name for name in shown)
    assert markdown([row("x", "b", "1 validator", pay=0.25), row("x", "b", "5 validators", pay=0.5)])[2:] == [
        "| x | b | - | - | 0.5 | 0 |"
    ]
