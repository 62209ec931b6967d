"""Every `--help` fits a terminal, begins with examples, groups its options and ends with the exit codes."""

from __future__ import annotations

import argparse

import pytest
from test_told_commands import MODULES, ROOT, script

from distributed_training.localnet import options as demo
from distributed_training.protocol.types import Role
from distributed_training.settings import flags
from distributed_training.settings.arguments import Parser
from distributed_training.settings.config import NodeConfig
from distributed_training.settings.help_texts import GROUPS
from distributed_training.settings.words import WIDTH, nearest, reflowed

MANY = 10  # options that are shown without titles
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py") if p.stem not in ("bench", "document_events"))


def parsers() -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {name: module.parser() for name, module in MODULES.items()}
    found |= {name: script(name).parser() for name in SCRIPTS} | {"demo": demo._parser()}
    known = flags.options(NodeConfig)
    for role in Role:
        mine = [option for option in known if flags.ROLE_ONLY.get(option.key, role) == role]
        found[role.name] = flags._build_parser(role, mine, {})
    return found


def ungrouped(parser: argparse.ArgumentParser) -> list[str]:
    own = parser._optionals._group_actions
    return [a.option_strings[-1] for a in own if a.help != argparse.SUPPRESS]


@pytest.mark.parametrize("name", sorted(parsers()))
def test_a_help_fits_is_grouped_and_has_examples_and_exit_codes(name: str) -> None:
    parser = parsers()[name]
    text = parser.format_help()
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []
    assert "examples:\n" in text and "exit code" in text
    assert len(parser._actions) <= MANY or ungrouped(parser) == []


def test_every_option_of_a_node_is_in_one_group() -> None:
    grouped = [key for keys in GROUPS.values() for key in keys]
    assert sorted(grouped) == sorted(option.key for option in flags.options(NodeConfig))


def test_an_option_in_no_group_is_found_out() -> None:
    parser = Parser("x", examples="  y", prog="x")
    parser.add_argument("--lost")
    assert ungrouped(parser) == ["--lost"]


def test_prose_is_filled_and_commands_keep_their_lines() -> None:
    text = f"{'word ' * 30}\n\nhead\n  a   b\n  c   d\n"
    assert reflowed(text).splitlines()[1:] == [("word " * 14).strip(), "", "head", "  a   b", "  c   d"]


def test_the_last_part_of_a_name_is_near() -> None:
    known = ["--axon.port", "--axon.external_port", "--wallet.hotkey", "DT_AXON_PORT", "DT_RUN_DIR"]
    assert nearest("--port", known) == "; did you mean --axon.port?"
    assert nearest("--hotkey", known) == "; did you mean --wallet.hotkey?"
    assert nearest("DT_PORT", ["DT_AXON_PORT", "DT_PRESET"]) == "; did you mean DT_AXON_PORT?"
    assert nearest("--zzz", known) == ""
