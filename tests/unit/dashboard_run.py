"""A run directory made of the recorded demo, as nodes leave it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localnet_recording import SPECS, recorded, recorded_manifest, recorded_summary

from distributed_training.dashboard.site import Site

MINER = next(spec for spec in SPECS if spec.name == "miner-0")


def lines(path: Path, *events: dict[str, Any] | str) -> Path:
    """Appended; a string as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in events)
    return path


def make_run(root: Path, *, over: bool = True) -> Path:
    """over: with the summary that the demo writes at the end."""
    for name, event in recorded():
        lines(root / "nodes" / name / "events.jsonl", dict(event))
    (root / "manifest.json").write_bytes(recorded_manifest().canonical())
    rows = {s.name: {"role": s.role.name.lower(), "uid": s.uid, "adversary": s.adversary} for s in SPECS}
    (root / "run.json").write_text(json.dumps({"seed": 1, "block_s": 0.5, "nodes": rows}))
    if over:
        (root / "summary.json").write_text(json.dumps(recorded_summary()))
    return root


def site_of(*files: Path) -> Site:
    site = Site(None, files)
    site.read_all()
    return site


def read(root: Path) -> Site:
    site = Site(root)
    site.read_all()
    return site
