"""Presets: shipped ones, and a person's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from distributed_training.errors import ConfigError
from distributed_training.recipes.reading import preset_names, read_preset, shown


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_is_the_preset_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(shown(name))
    assert read_preset(path) == read_preset(name)
    for section, fields in read_preset(name).sections.items():
        assert not isinstance(fields, dict) or all(f"{key} = " in shown(name) for key in fields), section


def test_a_file_needs_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('like = "gpt2-350m"\nname = "mine"\n[expect]\nup_mbit = 7.0\n[average]\nmin_counted = 5\n')
    mine, theirs = read_preset(path), read_preset("gpt2-350m")
    assert (mine.name, mine.expect.up_mbit, mine.sections["average"]["min_counted"]) == ("mine", 7.0, 5)
    assert mine.model == theirs.model and mine.expect.down_mbit == theirs.expect.down_mbit


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "expected TOML"),
        ('like = "gpt2-124n"', "like: expected one of .*, not 'gpt2-124n'"),
        ("like = 5", "like: expected one of"),
        ('name = "mine"', r"expected a section \[chain\]"),
        ('like = "mainnet"\nname = "mine"', r"expected a section \[model\]"),
        ('like = "gpt2-124m"\nname = 5', "expected a name, for example"),
        ('like = "gpt2-124m"\n[expect]\nmbit = 5', "expect.mbit: there is no such name here"),
        ('like = "gpt2-124m"\n[expect]\nup_mbit = 0.0', "expect.up_mbit: expected a number greater than 0"),
        ('like = "gpt2-124m"\n[chain]\ntempo = 1.5', "chain.tempo: expected a whole number"),
        ('like = "gpt2-124m"\nchain = 5', r"expected a section \[chain\]"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^--preset {path}: .*{why}") as caught:
        read_preset(path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none_has_a_neighbour() -> None:
    with pytest.raises(
        ConfigError, match=r"^--preset gpt2-125m: expected a file, or one of .*did you mean gpt2-124m\?"
    ):
        read_preset("gpt2-125m")
