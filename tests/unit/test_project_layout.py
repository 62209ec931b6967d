"""The house limits that no linter of ours checks: length of files and functions, and no code from foreign bytes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for part in ("distributed_training", "neurons", "scripts") for p in (ROOT / part).rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    long = [f.name for f in functions(ast.parse(text)) if (f.end_lineno or f.lineno) - f.lineno + 1 > 60]
    assert long == []


@pytest.mark.parametrize("path", sorted((ROOT / "neurons").glob("*.py")), ids=name_of)
def test_entry_points_have_no_logic(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_runs_foreign_bytes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"line {node.lineno}"
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {m.split(".")[0] for m in modules} & FORBIDDEN_MODULES, f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


def test_every_constraint_is_exact_and_names_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=str.lower)
    for line in lines:
        name, separator, version = line.partition("==")
        assert separator and name and version.replace(".", "").replace("post", "").isalnum(), line
