"""What a run asks of the disk, said before anything of it is written. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from distributed_training.errors import ConfigError, LocalFault
from distributed_training.localnet.options import Options

DEFAULT_COORDS = 859_392  # parameters of the model that is trained where none is named
COORD_BYTES = 8  # of a state: parameters and outer momentum
STATES = 4  # of a node: states, kept rounds, what is written beside it before it takes its place (measured: 2.4 to 3.4)
PAGES_BYTES = 32 << 20  # of the standard library, and the copy that the next run uses
OTHER_BYTES = 24 << 20  # events, logs, chain, picture
ROUNDS_A_CHECKPOINT = 2
LEFT_BYTES = 12 << 20  # with less a run that goes on is stopped: room to end in, and for the journals
MB = 1_000_000


def needed_bytes(options: Options, num_coords: int) -> int:
    """An estimate from above: of a run with the standard library's pages and this many parameters."""
    nodes = 1 + options.validators + options.miners + (options.hub or options.newcomer)
    states = nodes * STATES + 1 + options.rounds // ROUNDS_A_CHECKPOINT
    return PAGES_BYTES + OTHER_BYTES + COORD_BYTES * num_coords * states


def check_room(options: Options, num_coords: int = DEFAULT_COORDS) -> None:
    """Raises ConfigError when the disk of the run directory has too little left for what is still to be written."""
    folder = options.run_dir
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free, there = free_bytes(folder), used_bytes(options.run_dir)
    needed = max(2 * LEFT_BYTES, needed_bytes(options, num_coords) - there)
    if free < needed:
        raise ConfigError(
            f"--run-dir {options.run_dir}: its disk has {free // MB} MB left, a run like this needs about "
            f"{-(-needed // MB)} MB; make room, or give a folder on another disk with --run-dir"
        )


def check_left(folder: Path, least: int = LEFT_BYTES) -> None:
    """Of a run that goes on. Raises LocalFault while all that is there is still whole."""
    if free_bytes(folder) < least:
        raise LocalFault(full(folder))


def full(folder: Path) -> str:
    return (
        f"the disk of {folder} is full ({free_bytes(folder) // MB} MB left): the nodes are stopped, all that there is "
        "is kept; make room, and the same command with --run-dir goes on"
    )


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def used_bytes(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            found += path.lstat().st_blocks * 512
        except OSError:  # gone meanwhile
            continue
    return found
