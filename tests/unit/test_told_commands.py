"""Every command of ours that a document, a help text or a message tells somebody to type is one that is understood."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from distributed_training import history, runs, status
from distributed_training.chain.keys import registration_command, wallet_command
from distributed_training.dashboard import __main__ as dashboard
from distributed_training.doctor import __main__ as doctor
from distributed_training.doctor.standing import stake_command, start_command
from distributed_training.localnet import options as demo
from distributed_training.protocol.types import Role
from distributed_training.settings import flags
from distributed_training.settings.config import NodeConfig, load_config
from distributed_training.simulation import __main__ as simulation

ROOT = Path(__file__).parents[2]
TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(path for part in ("distributed_training", "scripts", "adversaries") for path in (ROOT / part).rglob("*.py")),
]
COMMAND = re.compile(
    r"(?:python|bash) (scripts/\w+\.py|scripts/demo\.sh|neurons/\w+\.py|-m distributed_training\.\w+)((?: [^`\n#|]*)?)"
)

MODULES: dict[str, Any] = {
    f"-m distributed_training.{name}": module
    for name, module in {"dashboard": dashboard, "history": history, "runs": runs, "simulation": simulation}.items()
}


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(program, its words) of what can be typed as it stands; an explanation after two spaces is none of them."""
    for program, rest in COMMAND.findall(re.sub(r"\\+\n\s*", "", text)):
        words = re.split(r"\s{2,}|\"(?:, |\"\")|\)", rest)[0]
        if "{" not in words:
            yield program, words.strip()


def found() -> list[tuple[str, str]]:
    return sorted({pair for path in TEXTS for pair in commands(path.read_text())})


@cache
def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def parser_of(program: str, words: list[str]) -> argparse.ArgumentParser:
    name = Path(program).stem
    if program in MODULES:
        return MODULES[program].parser()
    if program.startswith("-m") or name == "demo":
        return demo._parser()
    if name == "bench":
        return script("bench").parser(words[0], importlib.import_module(f"benchmarks.{words[0]}"))
    module = script(name)
    return module.parser()


BTCLI = re.compile(r"(?:^|`)(btcli(?: [^\s`#|]+)+)", re.MULTILINE)


@cache
def btcli_command() -> Any:
    from bittensor.cli.main import app

    return typer.main.get_command(app)


def btcli(words: Sequence[str]) -> None:
    """Parse a command with the installed btcli, and run nothing. Raises click's errors."""
    command, rest = btcli_command(), list(words)
    context = command.make_context("btcli", rest)
    while isinstance(command, TyperGroup):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)


def told_btcli() -> list[str]:
    home = Path("/home/me/my wallets")
    verbs = ("create", "new-hotkey", "regen-hotkey")
    return [
        *sorted({line for path in TEXTS for line in BTCLI.findall(re.sub(r"\\+\n\s*", "", path.read_text()))}),
        *(wallet_command(verb, home, "cold", "it's hot") for verb in verbs),
        registration_command("finney", 38, "my cold", "hot"),
        *(
            told(load_config(Role.OWNER, ["--netuid", "38"]))
            for told in (lambda c: stake_command(c, "5Dfh"), start_command)
        ),
        registration_command("test", 38, "cold", "hot", wallets=home),
        registration_command(
            "ws://127.0.0.1:9944", 38, "cold", "hot", address="5DfhGyQdFobKM8NsWvEeAKk5EQQgYe9AydgJ7rMB6E1EqRzV"
        ),
    ]


def test_btcli_understands_every_command_of_its_own_that_is_told() -> None:
    for line in told_btcli():
        btcli(shlex.split(re.sub(r"\bN\b", "38", line))[1:])  # N: of no particular subnet
    for wrong in ("wallet create --wallet.name w", "tx burned-register --network", "wallet regen-coldkeypub -w w"):
        with pytest.raises(Exception, match=r"No such option|requires an argument|Missing parameter"):
            btcli(wrong.split())


def test_who_is_told_to_pay_is_told_on_which_network() -> None:
    paying = [line for line in told_btcli() if "burned-register " in line]
    assert len(paying) >= 3
    assert all({"--network", "--netuid", "-w"} <= set(shlex.split(line)) for line in paying), paying


@pytest.mark.parametrize(("program", "line"), found(), ids=str)
def test_a_command_that_is_told_is_understood(program: str, line: str) -> None:
    words = shlex.split(line)
    if not words or "--help" in words or words[0] in ("list", "NAME"):
        return  # the program is named, no more
    if program == "-m distributed_training.doctor":
        options, words = doctor.parser().parse_known_args(words)
        program = f"neurons/{options.role}.py"
    if program == "-m distributed_training.status":  # a node's flags, and --run-dir
        own = status.parser()
        next(action for action in own._actions if action.dest == "run_dir").type = None
        options, words = own.parse_known_args(words)
        program = f"neurons/{options.role or 'miner'}.py"
    if program.startswith("neurons/"):
        role = Role[Path(program).stem.upper()]
        flags.parse(role, flags.options(NodeConfig), [word for word in words if word != "..."], {})
        return
    made = parser_of(program, words)
    for action in made._actions:
        action.type = None  # what a word stands for need not exist
    made.parse_args(words[Path(program).stem == "bench" :])


def test_the_documents_tell_commands_of_every_program() -> None:
    told = {program for program, _ in found()}
    assert {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")} <= told
    assert {f"neurons/{path.name}" for path in (ROOT / "neurons").glob("*.py")} <= told
