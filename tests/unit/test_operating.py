"""docs/operating.md says what every warning of a node means, every alarm, and every exit code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, PAGE = ROOT / "distributed_training", ROOT / "docs" / "operating.md"
# What a person's command runs, not a node.
NOT_OF_A_NODE = ("localnet", "simulation", "dashboard", "recipes", "doctor", "operator/harness.py", "settings/logs.py")
LEVELS = {"warning", "error", "exception", "critical"}


def constant(node: ast.expr) -> str:
    """What a message always has, `%` where values stand in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\d]*[a-z]", "%", node.value.replace("`", ""))
    if isinstance(node, ast.JoinedStr):
        return "".join(constant(part) if isinstance(part, ast.Constant) else "%" for part in node.values)
    return "%"


@cache
def calls() -> dict[str, list[ast.Call]]:
    """File of a node -> its calls."""
    found = dict[str, list[ast.Call]]()
    for path in sorted(PACKAGE.rglob("*.py")):
        name, source = str(path.relative_to(PACKAGE)), path.read_text("utf-8")
        if not name.startswith(NOT_OF_A_NODE) and re.search(r"\b(log\.|Ongoing|tell|attempt)", source):
            found[name] = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    return found


def messages(found: Iterable[ast.Call]) -> Iterator[str]:
    for node in found:
        name = node.func
        if isinstance(name, ast.Attribute) and name.attr in LEVELS and ast.unparse(name.value) == "log":
            yield constant(node.args[0])
        elif isinstance(name, ast.Name) and name.id == "Ongoing" and "DEBUG" not in ast.unparse(node):
            yield constant(node.args[1])


def longest(message: str) -> str:
    """The part by which it is found."""
    return max((part.strip(" :;,()") for part in message.split("%")), key=len)


def rows() -> str:
    """The first cells of all tables."""
    lines = PAGE.read_text("utf-8").splitlines()
    return "\n".join(line.split("|")[1] for line in lines if line.startswith("|"))


def test_every_warning_and_error_of_a_node_has_a_row() -> None:
    told = rows()
    lacking = {
        f"{name}: {message}"
        for name, found in calls().items()
        for message in messages(found)
        if len(longest(message)) > 3 and longest(message) not in told
    }
    assert not lacking, "docs/operating.md lacks:\n" + "\n".join(sorted(lacking))


def test_every_kind_of_fault_alarm_and_exit_code_has_a_row() -> None:
    told = rows()
    kinds = {
        constant(node.args[2])
        for found in calls().values()
        for node in found
        if ast.unparse(node.func) in ("tell", "attempt") and len(node.args) > 2
    }
    assert {f"({kind})" for kind in kinds - {"%"} if f"({kind})" not in told} == set()
    alarms = re.findall(r"- alert: (\w+)", (ROOT / "scripts" / "grafana" / "alerts.yml").read_text("utf-8"))
    assert alarms and [alarm for alarm in alarms if f"`{alarm}`" not in told] == []
    codes = re.findall(r"EXIT_\w+ = (\d+)", (PACKAGE / "node.py").read_text("utf-8"))
    assert [code for code in (*codes, "0", "2", "3", "130") if f" {code} " not in told] == []


def test_a_message_is_found_by_what_is_constant_in_it() -> None:
    source = 'log.warning("round %d: no step was done (%s)", 1, 2)\nOngoing(log, f"{a} is away", "x")\nlog.info("no")'
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert [longest(message) for message in messages(found)] == ["no step was done", "is away"]
