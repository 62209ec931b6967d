"""Python and the packages beside what this checkout names. Of the standard library alone: without them nothing else of
ours can be loaded, and that is what is to be told."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from distributed_training.doctor.base import Finding

ROOT = Path(__file__).resolve().parents[2]
SETUP = "bash scripts/setup.sh"
SHOWN = 4  # packages of one kind that a line names
MISSING = "not installed: "
LOWEST, HIGHEST = (3, 11), (3, 14)


def python_finding(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    shown, wanted = ".".join(map(str, version[:3])), f"3.{LOWEST[1]} to 3.{HIGHEST[1]}"
    if LOWEST <= version[:2] <= HIGHEST:
        return Finding("Python", "ok", f"{shown}, {sys.executable}")
    fix = f"install Python 3.13 and make the environment again with: PYTHON=python3.13 {SETUP}"
    return Finding("Python", "fail", f"{shown}, expected {wanted}", fix)


def package_findings(root: Path = ROOT) -> list[Finding]:
    """`root`: the checkout, whose pyproject.toml says what is needed and whose constraints.txt in which version."""
    try:
        pins, needed = _pins(root / "constraints.txt"), _needed(root / "pyproject.toml")
    except OSError as error:
        found = f"{error.filename} cannot be read: {error.strerror}"
        return [Finding("packages", "warn", found, "run it from a whole checkout: git status shows what is missing")]
    installed = {name: _installed(name) for name in {*pins, *needed}}
    missing = sorted(name for name in needed if installed[name] is None)
    other = {name: v for name, v in installed.items() if v and name in pins and _release(v) != pins[name]}
    wrong = sorted(name for name, version in other.items() if name in needed and not _within(version, needed[name]))
    findings = []
    if missing:
        findings.append(Finding("packages", "fail", f"{MISSING}{_list(missing)}", SETUP))
    if wrong:
        told = _list([f"{name} {other[name]}, expected {needed[name]}" for name in wrong])
        fix = f"{SETUP} (after a git pull the environment has to follow the checkout)"
        findings.append(Finding("packages", "fail", f"this environment is not that of this checkout: {told}", fix))
    if beside := sorted(other.keys() - set(wrong)):
        told = _list([f"{name} {other[name]}, tested is {pins[name]}" for name in beside])
        findings.append(Finding("packages", "warn", told, SETUP))
    return findings or [Finding("packages", "ok", f"{len(needed)} needed, all as in constraints.txt")]


def loadable(findings: Sequence[Finding]) -> bool:
    """Can the rest of the doctor be loaded at all?"""
    return not any(f.state == "fail" and (f.name == "Python" or f.found.startswith(MISSING)) for f in findings)


def checkout_finding(root: Path = ROOT, path: Sequence[str] | None = None) -> Finding:
    """`python neurons/miner.py` runs the package that the environment knows: is it the one beside it?

    path: where Python looks for packages; by default here, without the current folder, which `-m` puts first."""
    spec = PathFinder.find_spec("distributed_training", sys.path[1:] if path is None else path)
    other = None if spec is None or spec.origin is None else Path(spec.origin).resolve().parents[1]
    if other is None or other == root:
        return Finding("checkout", "ok", str(root))
    found = f"this is the code of {root}, but in this environment neurons/*.py run that of {other}"
    return Finding("checkout", "fail", found, f"cd {root} && {SETUP}, or export PYTHONPATH={root}")


def _pins(file: Path) -> dict[str, str]:
    lines = (line.strip().partition("==") for line in file.read_text("utf-8").splitlines())
    return {_plain(name): version for name, equal, version in lines if equal and not name.startswith("#")}


def _needed(file: Path) -> dict[str, str]:
    """What a node cannot do without: name -> versions that will do."""
    import tomllib  # of Python 3.11, and an older one gets as far as its finding

    lines = tomllib.loads(file.read_text("utf-8"))["project"]["dependencies"]
    parts = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?\s*([^;]*)(?:;.*)?", line) for line in lines)
    return {_plain(part[1]): part[2].strip() for part in parts if part is not None}


def _within(version: str, versions: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return False
    return SpecifierSet(versions).contains(version, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> str:
    """Without the build: 2.13.0+cu130 is 2.13.0."""
    return version.partition("+")[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _list(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
