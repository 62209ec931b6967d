"""How much disk a node needs for its run, and what goes first when an operator's budget is reached.

rounds/   what others ask for: slices and work records of `output_rounds`, our own chunks and log of `work_rounds`,
          what senders sent us of SENT_ROUNDS
state/    two snapshots, and one that is being written or fetched
feedback/ what our own encodings left out, where the run's uplink codec keeps it: fp32, a few rounds of it
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from distributed_training.averaging.codecs.base import Layout
from distributed_training.averaging.codecs.known import uplink_of
from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import log_bytes, output_bytes, uplink_bytes, works_bytes
from distributed_training.errors import ConfigError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.snapshots.states import StateFiles

log = logging.getLogger(__name__)

SENT, SENT_ROUNDS = "sent-", 2  # files of what senders sent us; so many rounds may still be audited
OWN_FILES = ("wire", "log")  # of a round: our chunks as we committed them, and the steps they came from
GIB = 1 << 30
_STATES = 3  # two kept, one on its way
_ROUNDS_MORE = 2  # the one under way, and the one that goes next
FOLDERS = ("rounds", "state", "feedback")
FEEDBACK_FILES = 5  # the ends of three rounds that may be asked for, the start of the first, and a new one
_OWN_NEEDED = 3  # rounds whose own bytes may still be asked for or are needed after a restart


def required_bytes(manifest: RunManifest, num_coords: int) -> int:
    """What the manifest makes a node keep at most, with every uid a miner."""
    layout, keep = layout_of(manifest, num_coords), manifest.keep
    inclusion = layout.num_chunks * -(-manifest.max_uids // 8) + 32 * manifest.max_uids * manifest.average.max_reducers
    own = uplink_bytes(manifest, layout) + log_bytes(manifest)
    outputs = output_bytes(manifest, layout) + works_bytes(manifest, layout) + inclusion
    kept = max(keep.output_rounds, keep.work_rounds) + _ROUNDS_MORE
    sent = 2 * uplink_bytes(manifest, layout)  # a slice of twice the mean size, or one and another where it stands in
    rounds = kept * outputs + (keep.work_rounds + _ROUNDS_MORE) * own + (SENT_ROUNDS + _ROUNDS_MORE) * sent
    return rounds + _STATES * 8 * num_coords + feedback_bytes(manifest, layout)


def feedback_bytes(manifest: RunManifest, layout: Layout) -> int:
    """Of a miner's feedback/, at most."""
    each = 4 * layout.num_coords + 32 * layout.num_chunks
    return FEEDBACK_FILES * each if uplink_of(manifest.average).feedback else 0


def check_disk(manifest: RunManifest, num_coords: int, budget_gib: float | None, folder: Path) -> None:
    """Raises ConfigError for a budget in which the run cannot be kept; warns when the disk itself is too small."""
    needed = required_bytes(manifest, num_coords)
    if budget_gib is not None and budget_gib * GIB < needed:
        raise ConfigError(
            f"--disk.budget_gib {budget_gib:g} is too small for this run: it needs up to {gib(needed)} GiB "
            f"({manifest.keep.output_rounds} rounds of slices and {_STATES} states of {num_coords:,} parameters)"
        )
    there = used_bytes(folder / name for name in FOLDERS)
    free = shutil.disk_usage(folder).free
    if free + there < needed:
        log.warning("this run needs up to %s GiB in %s; %s GiB are free", gib(needed - there), folder, gib(free))


def gib(size: int) -> str:
    """Rounded up, so that the number given back as a budget is enough."""
    return f"{-(-100 * size // GIB) / 100:.2f}"


def used_bytes(folders: Iterable[Path]) -> int:
    """Bytes of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += path.stat().st_blocks * 512 if path.is_file() else 0
            except OSError:
                continue
    return total


def enforce_budget(root: Path, states: StateFiles, round_index: int, budget: int) -> int:
    """Delete until rounds/, state/ and feedback/ fit into `budget` bytes; returns what they take then.

    First our own bytes of rounds that are over, then the slices of the oldest rounds, then the older snapshot. Never
    what this node itself needs to start again: the newest snapshot and the rounds since.
    """
    folders = tuple(root / name for name in FOLDERS)
    used = used_bytes(folders)
    if used <= budget:
        return used
    rounds = sorted(path for path in (root / "rounds").iterdir() if path.name.isdigit())
    for path in (p for p in rounds if int(p.name) < round_index - _OWN_NEEDED):
        for name in OWN_FILES:
            (path / name).unlink(missing_ok=True)
    needed = min(max(states.rounds(), default=round_index), round_index - 1)
    for path in (p for p in rounds if int(p.name) < needed):
        if (used := used_bytes(folders)) <= budget:
            return used
        log.warning("the disk budget is reached: round %s is dropped before its time, peers miss it", path.name)
        shutil.rmtree(path, ignore_errors=True)
    if used_bytes(folders) > budget:
        states.drop_old(keep=1)
    return used_bytes(folders)
