"""What documents, docstrings, comments and messages name of this repository is there: no reference dangles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("distributed_training", "neurons", "scripts", "adversaries", "benchmarks", "tests")
TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *(path for part in PARTS for kind in ("*.py", "*.sh") for path in (ROOT / part).rglob(kind)),
]
# A path of a file from the root of the repository, after nothing that would make it one of another place.
NAMED = re.compile(
    r"(?<![\w./~{}:-])((?>(?:docs|scripts|tests|neurons|adversaries|benchmarks|shared|work)/[\w./*-]*\w))(?![\w\\$@{])"
)
DOCUMENT = re.compile(r"(?<![\w./-])([\w-]+\.md)\b")
# Of other places: a model repository's card, what a test writes.
ELSEWHERE = {"README.md", "RELEASE.md"}
DOCUMENTS = ELSEWHERE | {p.name for part in (*PARTS, "docs") for p in (ROOT / part).rglob("*.md")}
DOCUMENTS |= {p.name for p in ROOT.glob("*.md")}


def is_there(name: str) -> bool:
    if re.search(r"(^|[/_])[A-Z]{2,}", name):  # a placeholder
        return True
    if "*" in name:
        return any(ROOT.glob(name))
    return (ROOT / name).exists() or (ROOT / f"{name}.py").exists()


def dangling(path: Path) -> Iterator[str]:
    text = path.read_text()
    yield from (name for name in NAMED.findall(text) if not is_there(name))
    yield from (name for name in DOCUMENT.findall(text) if name not in DOCUMENTS and "/" not in name)


def test_every_file_of_the_repository_that_is_named_is_there() -> None:
    found = {f"{path.relative_to(ROOT)}: {name}" for path in TEXTS if path != Path(__file__) for name in dangling(path)}
    assert sorted(found) == []


def test_a_reference_to_what_is_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("see docs/none.md, `shared/design/protocol` and scripts/demo.sh; work in tests/unit")
    (tmp_path / "y.md").write_text("none.md and ARCHITECTURE.md say so")
    assert set(dangling(tmp_path / "x.md")) == {"docs/none.md", "shared/design/protocol"}
    assert set(dangling(tmp_path / "y.md")) == {"none.md"}
