"""What several checks, and the words about them, read from a summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Summary = Mapping[str, Any]


def miners(summary: Summary, *, honest: bool) -> dict[str, int]:
    """Name -> uid of the miners that run the honest (or the other) program."""
    return {
        name: node["uid"]
        for name, node in summary["nodes"].items()
        if node["role"] == "miner" and (node["adversary"] is None) == honest
    }


def applied_rounds(summary: Summary) -> list[Mapping[str, Any]]:
    return [r for r in summary["rounds"] if r["applied"]]


def nobody_judged(summary: Summary) -> str | None:
    """Why nobody can have been audited and paid yet; None when they should."""
    if len(summary["rounds"]) != 1:
        return None
    return "not compared: one round alone; its work is audited and paid during the next one (--rounds 2 or more)"
