"""Wrong options of the commands: one line that says what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_training.errors import ConfigError
from distributed_training.settings.arguments import Parser, new_file, real, whole


def parser() -> Parser:
    made = Parser(prog="x", description="A  text\n  that keeps its lines.")
    made.add_argument("--rounds", type=whole(1, 9, "rounds"))
    made.add_argument("--rate", type=real(0.5, 2, "seconds"))
    made.add_argument("--json", type=new_file)
    made.add_argument("--kind", choices=("a", "b"))
    return made


def test_good_values_are_taken(tmp_path: Path) -> None:
    given = parser().parse_args(["--rounds", "9", "--rate", "0.5", "--json", str(tmp_path / "new.json"), "--kind", "b"])
    assert (given.rounds, given.rate, given.json, given.kind) == (9, 0.5, tmp_path / "new.json", "b")
    assert "A  text\n  that keeps its lines." in parser().format_help()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--rounds", "0"], "expected rounds, a whole number from 1 to 9, not '0'"),
        (["--rounds", "x"], "expected rounds, a whole number from 1 to 9, not 'x'"),
        (["--rate", "nan"], "expected seconds from 0.5 to 2, not 'nan'"),
        (["--rate", "2.1"], "expected seconds from 0.5 to 2, not '2.1'"),
        (["--json", "there/is/no/such/folder.json"], "there/is/no/such does not exist"),
        (["--kind", "c"], "invalid choice: 'c'"),
        (["--round", "3"], "unknown option --round; did you mean --rounds?"),
        (["--rounds"], "expected one argument"),
    ],
)
def test_a_wrong_one_is_refused_in_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parser().parse_args(argv)
    assert said in str(caught.value) and "\n" not in str(caught.value)
