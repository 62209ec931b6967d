"""The demo's options: defaults, what belongs to a run, and one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distributed_training.errors import ConfigError
from distributed_training.localnet.attacks import CLASSES, EVIDENCE, known_attacks
from distributed_training.localnet.layout import miners, node_specs
from distributed_training.localnet.options import parse_options
from distributed_training.protocol.types import Role


def test_defaults_are_four_equal_miners_two_validators_six_rounds() -> None:
    options = parse_options([])
    assert (options.rounds, options.miners, options.validators, options.speeds) == (6, 4, 2, (1, 1, 1, 1))
    assert options.steps_per_round == (20, 20, 20, 20)
    assert options.run_dir.parent == Path("runs").absolute()


@pytest.mark.parametrize(("flags", "rounds"), [([], 9), (["--rounds", "6"], 6)])
def test_a_sparse_uplink_gets_more_rounds_unless_somebody_says_how_many(flags: list[str], rounds: int) -> None:
    assert parse_options(["--set", "average.uplink=sparse", *flags]).rounds == rounds


def test_speeds_and_steps_multiply() -> None:
    assert parse_options(["--speeds", "1,1,2,4"]).steps_per_round == (20, 20, 40, 80)
    assert parse_options(["--speeds", "1,4", "--steps", "20"]).steps_per_round == (20, 80)


def test_what_makes_a_run_leaves_out_how_it_is_shown_and_how_long_it_goes_on(tmp_path: Path) -> None:
    base = parse_options(["--run-dir", str(tmp_path)])
    same = parse_options(["--run-dir", "elsewhere", "--rounds", "9", "--plain", "--port-base", "9300"])
    assert base.params() == same.params()
    for flags in (
        ["--hub", "auto"],
        ["--newcomer", "--rounds", "7"],
        ["--seed", "2"],
        ["--steps", "7"],
        ["--speeds", "1,1,1,2"],
        ["--validators", "1"],
        ["--set", "average.uplink=sparse"],
    ):
        assert parse_options(flags).params() != base.params()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speeds", "1,fast"], "argument --speeds: expected whole numbers from 1 to 16 like 1,1,2,4, not '1,fast'"),
        (["--speeds", "1"], "argument --speeds: expected 2 to 12 speeds, not 1"),
        (["--miners", "3", "--speeds", "1,1"], "argument --speeds: expected one speed for each of the 3 miners, not 2"),
        (["--miners", "1"], "argument --miners: expected miners, a whole number from 2 to 12, not '1'"),
        (["--rounds", "many"], "argument --rounds: expected rounds, a whole number from 1 to 1000, not 'many'"),
        (["--seed", "-1"], "argument --seed: expected a seed, a whole number from 0 to 4294967295, not '-1'"),
        (["--model", "no/such.json"], "no/such.json does not exist"),
        (["--text", "no/such"], "no/such does not exist"),
        (["--port-base", "80"], "argument --port-base: expected a port, a whole number from 1024 to 65000, not '80'"),
        (["--round", "3"], "unknown option --round; did you mean --rounds?"),
        (
            ["--adversary", "freerider"],
            "not 'freerider'; did you mean free-rider?",
        ),
        (["--adversary", "copycat:4"], "argument --adversary: expected a count from 1 to 3, not '4'"),
        (["--rounds", "3", "--rounds", "4"], "argument --rounds: given twice (3 and 4); it takes one value"),
        (["--adversary", "copycat", "--adversary", "copycat"], "copycat is given twice; say how many"),
        (["--adversary", "copycat:2", "--adversary", "free-rider:2"], "4 of 4 miners would cheat"),
        (["--newcomer"], "argument --newcomer: it needs 7 rounds to join and be paid: --rounds N"),
        (["--newcomer", "--rounds", "6", "--steps", "3"], "argument --newcomer: not with --steps (it changes the end)"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_expected(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adversary_is_the_last_miner_and_nothing_else_differs() -> None:
    options = parse_options(["--adversary", "free-rider:2", "--steps", "3"])
    assert [str(a) for a in options.adversaries] == ["free-rider:2"]
    specs = miners(node_specs(options))
    assert [s.adversary for s in specs] == [None, None, "free-rider", "free-rider"]
    assert [s.script.name for s in specs] == ["miner.py", "miner.py", "free_rider.py", "free_rider.py"]
    assert [s.exact_steps for s in specs] == [True, True, False, False]


def test_two_adversaries_are_the_last_miners_in_their_order() -> None:
    options = parse_options(["--adversary", "free-rider", "--adversary", "copycat:2"])
    assert [s.adversary for s in miners(node_specs(options))] == [None, "free-rider", "copycat", "copycat"]
    assert options.params()["adversary"] == "free-rider:1,copycat:2"


def test_a_validator_may_cheat_too_and_one_of_each_role_stays_honest() -> None:
    specs = node_specs(parse_options(["--adversary", "map-liar", "--adversary", "tail", "--validators", "2"]))
    assert [s.adversary for s in specs] == [None, None, "map-liar", None, None, None, "tail"]
    assert specs[2].script.name == "map_liar.py"
    with pytest.raises(ConfigError, match="1 of 1 validators would cheat; expected more --validators"):
        parse_options(["--adversary", "map-liar", "--validators", "1"])


def test_every_file_of_an_attack_says_what_it_is() -> None:
    known = known_attacks()
    assert {a.kind for a in known.values()} == set(CLASSES)
    for attack in known.values():
        assert attack.evidence in EVIDENCE, attack.name
        assert attack.line.endswith(".") and len(attack.line) <= 60, attack.name
        assert "should not" in attack.script.read_text(), f"{attack.name}: why it should not pay, or not harm"


def test_uids_follow_from_the_order_owner_validators_miners() -> None:
    specs = node_specs(parse_options(["--miners", "2", "--validators", "1", "--port-base", "9500"]))
    assert [(s.name, s.uid, s.role, s.port) for s in specs] == [
        ("owner", 0, Role.OWNER, 9500),
        ("validator-0", 1, Role.VALIDATOR, 9501),
        ("miner-0", 2, Role.MINER, 9502),
        ("miner-1", 3, Role.MINER, 9503),
    ]


def test_the_command_line_exits_2_with_one_line_and_help_exits_0() -> None:
    command = [sys.executable, "-m", "distributed_training.localnet"]
    wrong = subprocess.run([*command, "--rounds", "0"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert wrong.stderr.startswith("error: argument --rounds: expected rounds")
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "--adversary NAME[:COUNT]" in shown.stdout and "summary.json" in shown.stdout
