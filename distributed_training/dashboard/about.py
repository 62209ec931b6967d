"""What lies beside the events of a run: manifest, the demo's notes and summary, baselines, the model's size.

All of it may be missing or half written; only a manifest of another version is the operator's to mend.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from distributed_training import PROTOCOL_VERSION
from distributed_training.checkpoints.benchmarks import FILE, read_results
from distributed_training.dashboard.fold import RunFold
from distributed_training.dashboard.values import Node, by_uid, number, text, uid_of
from distributed_training.errors import ConfigError
from distributed_training.locks import holder
from distributed_training.protocol.manifest import RunManifest, parse_manifest

MAX_JSON_BYTES = 64 << 20
MAX_RESULTS = 2000
ROUND = re.compile(r"-1|[0-9]{1,9}")
SIGNS = ("manifest.json", "run.json", "nodes", "events.jsonl")


@dataclass(frozen=True, slots=True)
class About:
    """None and {}: not known."""

    manifest: RunManifest | None = None
    num_params: int | None = None
    seed: float | None = None
    block_s: float | None = None
    initial_heldout_loss: float | None = None
    baselines: dict[str, Any] | None = None
    nodes: dict[str, Any] = field(default_factory=dict)  # by name, as run.json has them
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    summarised: bool = False  # the run is over


def check_run_dir(folder: Path) -> None:
    """Raises ConfigError for a folder that is no run's, or one of another version's."""
    if not any((folder / name).exists() for name in SIGNS):
        raise ConfigError(f"{folder} is no run directory: it has none of {', '.join(SIGNS)}")
    told = read_json(folder / "manifest.json")
    version = None if told is None else told.get("protocol_version")
    if version not in (None, PROTOCOL_VERSION):
        raise ConfigError(
            f"{folder} is a run of another version: its protocol_version is {text(version, 20)}, "
            f"this program shows {PROTOCOL_VERSION}"
        )


def read_about(folder: Path) -> About:
    """As far as it can be read now. `folder`: a run directory, or one that is gone."""
    manifest, of_run = None, folder.parent.parent if folder.parent.name == "nodes" else folder  # may be of one node
    with suppress(OSError, ConfigError):
        manifest = parse_manifest((of_run / "manifest.json").read_bytes())
    made, summary = read_json(folder / "run.json") or {}, read_json(folder / "summary.json") or {}
    sizes = map(num_params, folder.glob("nodes/*/state"))
    results = read_results(folder / "checkpoints" / FILE)[-MAX_RESULTS:]
    return About(
        manifest=manifest,
        num_params=next((size for size in sizes if size is not None), None),
        seed=number(made.get("seed")),
        block_s=number(made.get("block_s")),
        initial_heldout_loss=number(summary.get("initial_heldout_loss")),
        baselines=_baselines(folder, _table(summary, "baseline_losses")),
        nodes={name: row for name, row in _table(made, "nodes").items() if isinstance(row, dict)},
        benchmarks=[r.model_dump(include={"tag", "round", "task", "metric", "value"}) for r in results],
        summarised=bool(summary),
    )


def stamp(folder: Path) -> tuple[int, ...]:
    """Another one when something that is read here has changed."""
    files = (
        *(folder / name for name in ("manifest.json", "run.json", "summary.json", f"checkpoints/{FILE}")),
        *folder.glob("baselines/*.json"),
    )
    return changed(*files)


def changed(*files: Path) -> tuple[int, ...]:
    """Of what changes with every write to these files."""
    found = []
    for file in files:
        with suppress(OSError):
            seen = file.stat()
            found += [seen.st_mtime_ns, seen.st_size]
    return tuple(found)


def read_json(path: Path) -> dict[str, Any] | None:
    """None for a file that is absent, half written, or not an object."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def introduce(fold: RunFold, about: About) -> None:
    """Nodes that have not said anything yet."""
    for name, row in about.nodes.items():
        node = fold.node(name)
        if node is not None:
            node.adversary = text(row.get("adversary"), 64)
            node.role = node.role if node.role != "unknown" else str(row.get("role"))[:64]
            node.uid = row["uid"] if node.uid is None and isinstance(row.get("uid"), int) else node.uid


def crashed(folder: Path, node: Node) -> bool:
    """It began, did not end by itself, and its process is gone."""
    locked = None if node.ended or node.killed else holder(folder / "nodes" / node.name)
    return locked is not None and not locked.lives


def _baselines(folder: Path, summed: dict[str, Any]) -> dict[str, Any] | None:
    """Of the summary, or as far as the demo's own have come."""
    solo, union = by_uid(_table(summed, "solo")), _table(summed, "union")
    if not union:
        for path in (folder / "baselines").glob("*.json"):
            losses = _table(read_json(path) or {}, "losses")
            if path.stem == "union":
                union = losses
            elif (uid := uid_of(path.stem)) is not None:
                solo[uid] = losses
    found = {"union": _curve(union), "solo": {str(uid): _curve(losses) for uid, losses in sorted(solo.items())}}
    return found if found["union"] or any(found["solo"].values()) else None


def _curve(losses: Any) -> list[list[float]]:
    """[[round, loss]...]; -1 is the start."""
    pairs = losses.items() if isinstance(losses, dict) else ()
    found = [[int(key), loss] for key, value in pairs if ROUND.fullmatch(key) and (loss := number(value))]
    return sorted(found)


def _table(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def num_params(folder: Path) -> int | None:
    """From the header of a state that a node keeps in its folder `state`."""
    try:
        with safe_open(min(folder.glob("*.safetensors")), "numpy") as state:
            return math.prod(state.get_slice("params").get_shape())
    except (OSError, ValueError, SafetensorError):  # ValueError: there is none
        return None
