"""Every command of ours that a document, a help text or a message tells somebody to type is one that is understood."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from distributed_training.localnet import options as demo
from distributed_training.protocol.types import Role
from distributed_training.settings import flags
from distributed_training.settings.config import NodeConfig
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
    if program == "-m distributed_training.simulation":
        return simulation.parser()
    if program.startswith("-m") or name == "demo":
        return demo._parser()
    if name == "bench":
        return script("bench").parser(words[0], importlib.import_module(f"benchmarks.{words[0]}"))
    module = script(name)
    return module.parser()


@pytest.mark.parametrize(("program", "line"), found(), ids=str)
def test_a_command_that_is_told_is_understood(program: str, line: str) -> None:
    words = shlex.split(line)
    if not words or "--help" in words or words[0] in ("list", "NAME"):
        return  # the program is named, no more
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
