"""The very last lines: where the picture is, how to hear the model, what to try next. All can be pasted, anywhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed_training.commands import command, quoted
from distributed_training.localnet.layout import REPOSITORY, RunPaths
from distributed_training.localnet.run.page import page_command

DEMO = ("bash", REPOSITORY / "scripts" / "demo.sh")
NEXT = (
    ("miners of different speed", ("--speeds", "1,1,2,4")),
    ("one that cheats", ("--adversary", "free-rider", "--rounds", "8")),
    ("nodes killed on the way", ("--kill", "miner@average", "--kill", "validator@train", "--rounds", "6")),
)


def next_lines(summary: Mapping[str, Any], paths: RunPaths) -> list[str]:
    """Plain text."""
    page = command(*page_command(sys.executable, paths.root))
    shown = [("picture", quoted(paths.report)), ("page", page), ("numbers", quoted(paths.summary))]
    if has_states(paths.root / "checkpoints"):
        sample = (sys.executable, REPOSITORY / "scripts" / "sample.py")
        shown.append(("let the model write", command(*sample, paths.root, "def main(")))
    if summary["ok"]:
        shown += [(f"next: {what}", command(*DEMO, *flags)) for what, flags in NEXT if not tried(summary, flags[0])][:2]
    else:
        shown.append(("what the nodes say", quoted(paths.root / "nodes") + "/*/log.txt"))
    if not summary["checks"].get("rounds_applied", True):
        shown.append(("the missing rounds", f"the same command with {command(('--run-dir', paths.root))}"))
    width = max(len(what) for what, _ in shown) + 2
    return [f"{what:<{width}}{text}" for what, text in shown]


def tried(summary: Mapping[str, Any], flag: str) -> bool:
    """Did this run do so already?"""
    params = summary["params"]
    return len(set(params["speeds"])) > 1 if flag == "--speeds" else params.get(flag.removeprefix("--")) is not None


def has_states(checkpoints: Path) -> bool:
    """Not in a run whose checkpoints went to a Hub."""
    return any(checkpoints.glob("round-*"))
