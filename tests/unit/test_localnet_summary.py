"""The summary of a recorded run: its schema, its numbers, and every check against what would break it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from localnet_recording import PAID, recorded_summary
from rich.console import Console

from distributed_training.localnet.judge.checks import run_checks
from distributed_training.localnet.judge.fault_checks import absent
from distributed_training.localnet.judge.summary import write_summary
from distributed_training.localnet.show.report import write_report
from distributed_training.localnet.show.result_text import result_lines

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "summary.schema.json").read_text())
Summary = dict[str, Any]


@pytest.fixture(scope="module")
def whole() -> Summary:
    return recorded_summary()


@pytest.fixture
def summary(whole: Summary) -> Summary:
    return copy.deepcopy(whole)


def failed(summary: Summary) -> set[str]:
    return {check.name for check in run_checks(summary) if check.ok is False}


def test_an_honest_run_holds_every_check_and_fits_the_schema(summary: Summary, tmp_path: Path) -> None:
    assert summary["ok"] and all(summary["checks"].values())
    write_summary(tmp_path / "summary.json", summary)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads((tmp_path / "summary.json").read_text()), SCHEMA)


def test_the_schema_refuses_what_is_missing_or_unknown(summary: Summary) -> None:
    for change in (lambda s: s.pop("union_heldout_loss"), lambda s: s["rounds"][0].pop("state_roots"),
                   lambda s: s["rounds"][0].update(extra=1)):  # fmt: skip
        broken = copy.deepcopy(summary)
        change(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(json.dumps(broken)), SCHEMA)


def test_the_numbers_are_those_of_the_events(summary: Summary) -> None:
    assert summary["initial_heldout_loss"] == pytest.approx(5.3768, abs=1e-4)
    assert summary["final_heldout_loss"] == pytest.approx(3.0155, abs=1e-4)
    first = summary["rounds"][0]
    assert (first["index"], first["applied"], first["included"], first["tokens"]) == (0, True, [3, 4, 5, 6], 81920)
    assert first["nodes"]["miner-3"]["steps"] == 20 and first["nodes"]["miner-3"]["tokens"] == 40960
    assert first["nodes"]["owner"]["steps"] is None and first["nodes"]["owner"]["seconds"]["train"] is None
    assert set(first["state_roots"]) == set(summary["nodes"]) and len(set(first["state_roots"].values())) == 1
    assert first["scores"]["6"]["weight"] == 0.5
    assert set(first["scores_by_validator"]) == {"validator-0", "validator-1"}
    assert summary["rounds"][1]["weights"]["2"]["6"] == 0.5
    assert summary["first_common_audit"] == 0 and summary["last_scored_round"] == 1


Break = Callable[[Summary], object]


def move(summary: Summary, index: int, name: str, verdict: str) -> None:
    """The watcher's word on one node in one round."""
    row = summary["watch"]["rounds"][index]
    row["settled"].remove(name)
    row[verdict].append(name)


BREAKS: list[tuple[str, Break]] = [
    ("rounds_applied", lambda s: s.update(rounds_wanted=4)),
    ("offline_check", lambda s: s["rounds"][1].update(state_roots=dict.fromkeys(s["nodes"], "00" * 32))),
    ("offline_check", lambda s: s["offline"]["rounds"].pop()),
    ("same_state_root", lambda s: s["rounds"][2]["state_roots"].update({"miner-1": None})),
    ("offline_check", lambda s: s.update(offline=None)),
    ("offline_check", lambda s: s["offline"].update(ok=False, problems=["round 1: slice 2"])),
    ("miners_included", lambda s: s["rounds"][1]["included"].remove(5)),
    ("nobody_hung", lambda s: s.update(watch=None)),
    ("nobody_hung", lambda s: s["watch"]["rounds"].pop()),
    ("nobody_hung", lambda s: s["watch"]["rounds"][1]["settled"].remove("owner")),
    ("nobody_hung", lambda s: move(s, 1, "owner", "late")),
    ("nobody_hung", lambda s: move(s, 1, "miner-0", "dead")),
    ("slices_counted", lambda s: s["rounds"][0].update(counted=[0, 3])),
    ("bytes_sent", lambda s: s["rounds"][2]["nodes"]["miner-2"].update(bytes_sent=600_000)),
    ("bytes_sent", lambda s: s["rounds"][2]["nodes"].update({"miner-2": None})),
    ("weights_on_chain", lambda s: s["final"]["weights"].pop("2")),
    ("incentive_sum", lambda s: s["final"]["incentive"].update({"6": 0.51})),
    ("incentive_proportional", lambda s: s["final"]["incentive"].update({"6": 0.4, "5": 0.35})),
    ("incentive_proportional", lambda s: s.update(first_common_audit=None)),
    ("loss_below_solo_mean", lambda s: s.update(final_heldout_loss=3.21)),
    ("loss_below_solo_mean", lambda s: s.update(solo_heldout_loss={})),
    ("checkpoint_published", lambda s: s.update(checkpoints=[])),
    ("ended_cleanly", lambda s: s["nodes"]["owner"].update(exit_code=1)),
    ("ended_cleanly", lambda s: s["nodes"]["owner"].update(exit_code=None)),
]


@pytest.mark.parametrize(("name", "change"), BREAKS)
def test_each_check_fails_for_its_own_reason_only(summary: Summary, name: str, change: Break) -> None:
    assert failed(summary) == set()
    change(summary)
    assert failed(summary) == {name}


SHORT: list[tuple[str, Break]] = [
    ("too few miners (2; at least 3)", lambda s: [s["nodes"].pop(name) for name in ("miner-0", "miner-1")]),
    ("too short (2 rounds; at least 3)", lambda s: s["rounds"].pop()),
    ("too short (2 rounds; at least 3)", lambda s: s["rounds"][1].update(applied=False)),
    ("rounds too short (4 steps; at least 5, after the ramp of a round)", lambda s: every_round(s, 4, rounds=8)),
]


def every_round(summary: Summary, steps: int, rounds: int) -> None:
    """So many rounds of so many steps of each miner."""
    summary["rounds"] = [copy.deepcopy(summary["rounds"][0]) for _ in range(rounds)]
    for r in summary["rounds"]:
        for name in r["nodes"]:
            r["nodes"][name]["steps"] = steps


@pytest.mark.parametrize(("why", "shorten"), SHORT)
def test_a_run_too_short_to_compare_says_so_and_does_not_fail(summary: Summary, why: str, shorten: Break) -> None:
    shorten(summary)
    for final in (2.0, 9.0):
        summary["final_heldout_loss"] = final
        found = next(c for c in run_checks(summary) if c.name == "loss_below_solo_mean")
        assert found.ok is None and found.detail.startswith(f"not compared: {why}; together {final:.4f}, alone")
    summary["solo_heldout_loss"] = {}
    assert "loss_below_solo_mean" in failed(summary)  # nothing measured is a failure in any run


def test_a_run_in_which_nothing_was_learned_fails_however_short_it_is(summary: Summary) -> None:
    for r in summary["rounds"]:
        r["nodes"] = {name: node and node | {"steps": 1} for name, node in r["nodes"].items()}
    assert failed(summary) == set()
    summary["final_heldout_loss"] = summary["initial_heldout_loss"]
    assert failed(summary) == {"loss_fell"}


def test_a_run_of_five_steps_in_five_rounds_is_compared_and_can_fail(summary: Summary) -> None:
    every_round(summary, 5, rounds=5)
    assert "loss_below_solo_mean" not in failed(summary)
    summary["final_heldout_loss"] = 3.21
    assert "loss_below_solo_mean" in failed(summary)


def test_what_was_not_compared_is_shown_and_fits_the_schema(summary: Summary) -> None:
    summary["checks"]["loss_below_solo_mean"] = None
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    text = shown(summary)
    assert "  -    loss_below_solo_mean" in text and "all 13 checks held, 1 not compared" in text


def test_a_watcher_that_was_stopped_blames_nobody_and_a_machine_that_slept_is_named(summary: Summary) -> None:
    move(summary, 1, "owner", "unseen")
    summary["watch"]["stood_still"] = [{"round": 0, "seconds": 70.2}]
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    assert failed(summary) == set()
    assert "the machine stood still for 70 s in round 0" in shown(summary)


def shown(summary: Summary) -> str:
    out = StringIO()
    for line in result_lines(summary):
        Console(file=out, width=200).print(line)
    return out.getvalue()


def test_a_node_with_another_root_breaks_both_checks_of_roots(summary: Summary) -> None:
    summary["rounds"][1]["state_roots"]["owner"] = "00" * 32
    assert failed(summary) == {"same_state_root", "offline_check"}


def test_exact_steps_are_checked_when_asked_for(summary: Summary) -> None:
    summary["params"]["steps"] = 5
    assert failed(summary) == set()
    summary["rounds"][1]["nodes"]["miner-3"]["steps"] = 19
    assert failed(summary) == {"exact_steps"}


def with_adversary(summary: Summary) -> Summary:
    """The fastest miner cheated, both validators found it, and it is not paid."""
    summary["nodes"]["miner-3"]["adversary"] = "free-rider"
    paid = {str(uid): share for uid, share in PAID.items() if uid != 6}
    summary["final"]["incentive"] = {u: x / sum(paid.values()) for u, x in paid.items()} | {"6": 0.0}
    audit = {"round": 0, "uid": 6, "depth": 2, "failed_step": 0, "error": 1.4, "reason": "gradient"}
    summary["failed_audits"] = [{"validator": f"validator-{i}", **audit} for i in range(2)]
    return summary


ADVERSARY_BREAKS: list[tuple[str, Break]] = [
    ("adversary_unpaid", lambda s: s["final"]["incentive"].update({"6": 0.02, "5": 0.48})),
    ("adversary_named", lambda s: s["failed_audits"].pop()),
    ("adversary_named", lambda s: s["failed_audits"][0].update(failed_step=None)),
    ("adversary_took_part", lambda s: s["rounds"][0]["credit"].update({"6": 0.0})),
]


@pytest.mark.parametrize(("name", "change"), ADVERSARY_BREAKS)
def test_a_run_with_an_adversary_has_its_own_checks(summary: Summary, name: str, change: Break) -> None:
    with_adversary(summary)
    assert failed(summary) == set()
    change(summary)
    assert failed(summary) == {name}


def cheating(summary: Summary, attack: str) -> Summary:
    with_adversary(summary)
    summary["nodes"]["miner-3"]["adversary"] = attack
    summary["failed_audits"] = []
    return summary


def left_out(summary: Summary, uids: list[int]) -> None:
    """Its slice of each round lacks these, and it has half of its duty."""
    for row in summary["rounds"]:
        row["missing"] = {j: uids for j, uid in row["reducers"].items() if uid == 6}
    summary["audited"]["6"]["duty"] = 0.5


def uncounted(summary: Summary) -> None:
    row = summary["rounds"][1]
    mine = next(int(j) for j, uid in row["reducers"].items() if uid == 6)
    row["counted"].remove(mine)
    summary["audited"]["6"]["duty"] = 0.7


def tail_failed(summary: Summary, step: int) -> None:
    audit = {"round": 1, "uid": 6, "depth": 9, "failed_step": step, "error": 1.4, "reason": "gradient"}
    summary["failed_audits"] = [{"validator": "validator-1", **audit}]


def no_credit(summary: Summary) -> None:
    for row in summary["rounds"]:
        row["credit"]["6"] = 0.0


# What shows of an attack, and what the judge says of it
EVIDENCE: list[tuple[str, Break, str]] = [
    ("omitter", lambda s: left_out(s, [3, 4, 5]), "75 % of the expected senders are not in its slices; duty 0.50"),
    ("withholder", uncounted, "33 % of its slices did not count; duty 0.70, honest 1.00"),
    ("tail", lambda s: tail_failed(s, 4), "gradient at step 4, error 1.4, behind its 4 honest steps (round 1)"),
    ("skipper", lambda s: s["audited"]["6"].update(unanswered=0.5), "left 50 % of the probes without an answer"),
    ("silent", no_credit, "credit 0.00, honest at least 1.00"),
]


@pytest.mark.parametrize(("attack", "show", "said"), EVIDENCE)
def test_each_attack_is_named_where_it_shows_and_not_before(
    summary: Summary, attack: str, show: Break, said: str
) -> None:
    cheating(summary, attack)
    assert failed(summary) == {"adversary_named"}
    show(summary)
    assert failed(summary) == set()
    details = {check.name: check.detail for check in run_checks(summary)}
    assert said in details["adversary_named"]


def test_a_tail_that_failed_at_an_honest_step_is_not_its_evidence(summary: Summary) -> None:
    tail_failed(cheating(summary, "tail"), 3)
    assert failed(summary) == {"adversary_named"}


def test_who_disturbs_is_held_to_its_fair_share_and_to_nothing_else(summary: Summary) -> None:
    cheating(summary, "resigner")
    assert failed(summary) == set()
    summary["final"]["incentive"] = {"3": 0.1, "4": 0.1, "5": 0.2, "6": 0.6}
    assert failed(summary) == {"adversary_unpaid"}


def test_honest_pay_beside_a_cheat_follows_the_work_more_closely(summary: Summary) -> None:
    with_adversary(summary)
    paid = summary["final"]["incentive"]
    paid["3"], paid["4"] = paid["3"] * 1.12, paid["4"] * 0.88
    assert failed(summary) == {"honest_proportional"}


def test_honest_checks_do_not_ask_an_adversary_for_anything(summary: Summary) -> None:
    with_adversary(summary)
    summary["rounds"][2]["included"].remove(6)
    summary["rounds"][2]["nodes"]["miner-3"] = dict(summary["rounds"][2]["nodes"]["miner-3"], bytes_sent=0, steps=0)
    assert failed(summary) == set()


NEWCOMER = {"role": "miner", "uid": 3, "hotkey": "5F", "by_demo": True, "source": "peers", "start_round": 0,
            "rounds": [0, 1, 2], "included": [2], "exit_code": 0}  # fmt: skip


NEWCOMER_BREAKS: list[Break] = [
    lambda s: s.update(joined={}),
    lambda s: s["joined"]["newcomer"].update(included=[]),
    lambda s: s["joined"]["newcomer"].update(included=[4, 5]),
    lambda s: s["joined"]["newcomer"].update(exit_code=None),
    lambda s: s["joined"]["newcomer"].update(uid=99),  # nothing was paid to this one
]


@pytest.mark.parametrize("change", NEWCOMER_BREAKS)
def test_who_joined_by_itself_is_included_soon_and_paid(summary: Summary, change: Break) -> None:
    summary["params"]["newcomer"], summary["joined"] = True, {"newcomer": dict(NEWCOMER)}
    assert failed(summary) == set()
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    change(summary)
    assert failed(summary) == {"newcomer_joined"}


def with_hub(summary: Summary) -> Summary:
    """Everything over a Hub: a validator came in round 1, and what was published is what the owner evaluated."""
    index = max(c["round"] for c in summary["checkpoints"])
    told = next(r["heldout_loss"] for r in summary["rounds"] if r["index"] == index - 1)
    summary["hub"] = {
        "pages": "hub:demo/pages@" + "ab" * 20,
        "checkpoints": "hub:demo/checkpoints",
        "published": {"repository": "demo/checkpoints", "revision": f"local-1.{index}", "heldout_loss": told + 5e-5},
        "verify_exit_code": 0,
        "miner_copies": [{"round": 1, "target": 4, "ok": True, "said": "demo/miner-1"}],
        "page_requests": 40,
        "bytes_served": 1_000_000,
    }
    came = {"role": "validator", "source": "checkpoint", "start_round": 1, "included": []}
    summary["joined"] = {"newcomer": NEWCOMER | came}
    return summary


HUB_BREAKS: list[tuple[str, Break]] = [
    ("newcomer_from_hub", lambda s: s.update(joined={})),
    ("newcomer_from_hub", lambda s: s["joined"]["newcomer"].update(source="peers")),
    ("newcomer_from_hub", lambda s: s["joined"]["newcomer"].update(rounds=[2])),
    ("newcomer_from_hub", lambda s: s["joined"]["newcomer"].update(start_round=0)),
    ("newcomer_from_hub", lambda s: s["joined"]["newcomer"].update(exit_code=None)),
    ("published_model", lambda s: s["hub"].update(published=None)),
    ("published_model", lambda s: s["hub"]["published"].update(heldout_loss=9.9)),
    ("published_verified", lambda s: s["hub"].update(verify_exit_code=1)),
    ("published_verified", lambda s: s["hub"].update(verify_exit_code=None)),
    ("miner_copies", lambda s: s["hub"].update(miner_copies=[])),
    ("miner_copies", lambda s: s["hub"]["miner_copies"][0].update(ok=False)),
    ("pages_over_hub", lambda s: s["hub"].update(page_requests=0)),
    ("pages_over_hub", lambda s: s["hub"].update(page_requests=None)),
]


@pytest.mark.parametrize(("name", "change"), HUB_BREAKS)
def test_a_run_over_a_hub_has_its_own_checks(summary: Summary, name: str, change: Break) -> None:
    with_hub(summary)
    assert failed(summary) == set()
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    change(summary)
    assert failed(summary) == {name}


def with_kill(summary: Summary) -> Summary:
    """miner-2 (uid 5) was killed in round 1 and contributed again in round 2; the watcher found it dead in round 1."""
    fault = {"name": "miner-2", "role": "miner", "phase": "average", "round": 1, "block": 92, "pid": 7}
    times = {"restarted_at": 102, "ready_again_block": 111, "rejoined_round": 2}
    summary["faults"] = [fault | {"bytes_in_flight": 0, "helpers": [8], "survivors": []} | times]
    summary["params"]["kill"] = ["miner@average"]
    summary["rounds"][1]["state_roots"]["miner-2"] = None
    summary["rounds"][1]["nodes"]["miner-2"] = None
    summary["rounds"][1]["included"].remove(5)
    summary["rounds"][1]["counted"] = [0, 1, 3]
    move(summary, 1, "miner-2", "dead")
    return summary


KILL_BREAKS: list[tuple[set[str], Break]] = [
    ({"kills_done"}, lambda s: s["params"]["kill"].append("owner@train")),
    ({"kills_done"}, lambda s: s["faults"][0].update(block=None)),
    ({"no_survivors"}, lambda s: s["faults"][0].update(survivors=[8])),
    ({"no_survivors"}, lambda s: s["faults"][0].update(survivors=None)),
    ({"rejoined_within_2_rounds"}, lambda s: s["faults"][0].update(rejoined_round=4)),
    ({"rejoined_within_2_rounds"}, lambda s: s["faults"][0].update(rejoined_round=None)),
    ({"rounds_applied"}, lambda s: s.update(rounds_wanted=6)),
    ({"miners_included"}, lambda s: s["rounds"][2]["included"].remove(5)),
    ({"miners_included"}, lambda s: s["rounds"][1]["included"].remove(4)),
    ({"same_state_root", "offline_check"}, lambda s: s["rounds"][1]["state_roots"].update({"miner-2": "00" * 32})),
    ({"same_state_root"}, lambda s: s["rounds"][2]["state_roots"].update({"miner-2": None})),
    ({"slices_counted"}, lambda s: s["rounds"][1].update(counted=[0, 1])),
    ({"bytes_sent"}, lambda s: s["rounds"][1]["nodes"].update({"miner-1": None})),
    ({"bytes_sent"}, lambda s: s["rounds"][1]["nodes"]["miner-1"].update(bytes_sent=400_000)),
    ({"nobody_hung"}, lambda s: move(s, 2, "miner-2", "dead")),
    ({"nobody_hung"}, lambda s: s["watch"]["rounds"][1].update(dead=[], late=["miner-2"])),
]


def test_a_killed_node_is_excused_for_the_rounds_it_was_away(summary: Summary) -> None:
    assert failed(with_kill(summary)) == set()
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    summary["rounds_wanted"] = 5  # two rounds may be lost to kills
    assert failed(summary) == set()


@pytest.mark.parametrize(("names", "change"), KILL_BREAKS)
def test_each_check_of_a_run_with_kills_fails_for_its_own_reason_only(
    summary: Summary, names: set[str], change: Break
) -> None:
    change(with_kill(summary))
    assert failed(summary) == names


def test_nothing_is_excused_without_a_kill_on_record(summary: Summary) -> None:
    with_kill(summary)
    summary |= {"faults": [], "params": summary["params"] | {"kill": None}}
    assert failed(summary) == {"same_state_root", "miners_included", "bytes_sent", "nobody_hung"}


def test_a_node_that_never_came_back_is_excused_for_no_longer_than_it_may_take(summary: Summary) -> None:
    with_kill(summary)["faults"][0].update(round=0, rejoined_round=None)
    assert absent(summary, 0) == absent(summary, 1) == {"miner-2"} and absent(summary, 2) == set()


def test_a_round_in_which_the_run_was_stopped_is_not_judged_and_the_others_are(summary: Summary) -> None:
    summary["params"]["steps"] = 5
    move(summary, 1, "owner", "dead")
    summary["rounds"][1]["included"].remove(4)
    summary["rounds"][1]["counted"] = [2]
    summary["rounds"][1]["nodes"]["miner-3"].update(steps=None, bytes_sent=3)
    assert failed(summary) == {"nobody_hung", "miners_included", "slices_counted", "bytes_sent", "exact_steps"}
    summary["watch"]["interrupted"] = [1]
    jsonschema.validate(json.loads(json.dumps(summary)), SCHEMA)
    assert failed(summary) == set()
    details = {check.name: check.detail for check in run_checks(summary)}
    for name in ("nobody_hung", "miners_included", "exact_steps"):
        assert "but for round 1, in which the run was stopped and went on" in details[name]
    for index in (0, 2):
        broken = copy.deepcopy(summary)
        broken["rounds"][index]["nodes"]["miner-3"]["steps"] = 19
        assert failed(broken) == {"exact_steps"}
    summary["rounds"][1]["state_roots"]["owner"] = "00" * 32
    assert failed(summary) == {"same_state_root", "offline_check"}, "who told a root told the same one"


def test_the_report_marks_kills(summary: Summary, tmp_path: Path) -> None:
    write_report(tmp_path / "kills.png", with_kill(summary))
    assert (tmp_path / "kills.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_names_losses_pay_and_every_failed_check(summary: Summary) -> None:
    summary["checks"]["bytes_sent"] = False
    text = shown(summary)
    assert "together, averaged peer to peer     3.0155" in text
    assert "one worker on all tokens            2.9000" in text
    assert "miner-3 (uid 6)                   60     50.00 %" in text
    assert "FAIL bytes_sent" in text and "1 of 14 checks failed: bytes_sent" in text


def test_the_report_is_drawn_from_whatever_was_measured(summary: Summary, tmp_path: Path) -> None:
    write_report(tmp_path / "whole.png", summary)
    summary |= {"rounds": [], "initial_heldout_loss": None, "solo_heldout_loss": {}}
    summary["baseline_losses"] = {"solo": {}, "union": {}}
    summary["final"] = {"block": None, "weights": {}, "incentive": {}}
    write_report(tmp_path / "empty.png", summary)
    for name in ("whole.png", "empty.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
