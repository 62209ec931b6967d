"""The measured part of docs/models.md: everything below its marker is written by the benchmark."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MARKER = "<!-- below: written by scripts/bench.py models --page docs/models.md -->"
_ROOT = Path(__file__).parents[1]


def rewrite(page: Path, rows: Iterable[Mapping[str, Any]], versions: Mapping[str, str]) -> None:
    """Replace what stands below the marker. Raises OSError, ValueError for a page without it."""
    told, marker, _ = page.read_text().partition(MARKER)
    if not marker:
        raise ValueError(f"{page}: no line {MARKER}")
    page.write_text(told + marker + "\n\n" + measured(list(rows), versions))


def measured(rows: list[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """Names of what is right in one paragraph, a table of everything else."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=_ROOT, capture_output=True, text=True)
    on = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [f"Commit {commit.stdout.strip()}, {on}, Python {platform.python_version()}, CPU, one thread.\n"]
    for title, published in (("Families", False), ("Published files", True)):
        some = [row for row in rows if row["model"].endswith(".json") == published]
        if some:
            parts += _part(title, some)
    return "\n".join(parts)


def _part(title: str, rows: list[Mapping[str, Any]]) -> list[str]:
    right = [row["model"].removesuffix(".json") for row in rows if row["result"] == "right"]
    able = sum(row["plain"] is None for row in rows)
    made = [f"### {title}\n", f"{len(rows)}, of which plain transformers trains {able}.\n"]
    made.append(f"Right ({len(right)}): {', '.join(right)}.\n")
    made += ["| model | result | what |", "|---|---|---|"]
    for row in rows:
        if row["result"] != "right":
            without = "" if row["plain"] is None else " (plain transformers cannot either)"
            what = row["what"].replace("|", "\\|").replace("<", "&lt;")
            made.append(f"| {row['model'].removesuffix('.json')} | {row['result']}{without} | {what} |")
    return [*made, ""]
