"""Several GPUs under one hotkey: the processes that share each batch of a node with it (`training/lockstep.py`).

They are children of the node (`--gpus N`), or what torchrun started beside it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from distributed_training.devices import no_gpu, seen_gpus, torch_here
from distributed_training.engine import Engine, choices
from distributed_training.errors import ConfigError, OutOfMemory, said
from distributed_training.protocol.manifest import RunManifest
from distributed_training.settings.config import NodeConfig
from distributed_training.training.device import rank_device
from distributed_training.training.team import Rank, torchrun_rank

if TYPE_CHECKING:
    from distributed_training.training.lockstep import Leader

log = logging.getLogger(__name__)

FOLLOW = (sys.executable, "-m", "distributed_training.training.follow")


class Children:
    """Ranks 1 to size - 1. They end with this process, in whatever way that ends."""

    def __init__(self, size: int, command: Sequence[str] = FOLLOW) -> None:
        """command: followed by where to meet, rank and size. Raises OSError."""
        self._folder = TemporaryDirectory(prefix="ranks-")
        self.meet = f"file://{self._folder.name}/meet"  # so that nothing has to listen for it
        self.processes = [
            # A group of their own: what a terminal or a supervisor tells this process is not for them.
            subprocess.Popen([*command, self.meet, str(rank), str(size)], stdin=subprocess.PIPE, process_group=0)
            for rank in range(1, size)
        ]

    def close(self) -> None:
        for process in self.processes:
            process.kill()  # it has nothing to keep
            process.wait()
        self._folder.cleanup()


def num_processes(config: NodeConfig) -> int:
    """That train together, this one included."""
    rank = torchrun_rank(os.environ)
    return rank.size if rank is not None else config.gpus or 1


def open_team(config: NodeConfig, manifest: RunManifest, stack: AsyncExitStack) -> Leader | None:
    """The team whose rank 0 this process is, still to be joined; None where it is alone. What is opened is closed by
    `stack`. Raises ConfigError."""
    rank, size = torchrun_rank(os.environ), num_processes(config)
    if size == 1:
        return None
    _check(config, manifest.data.batch_size, size, torchrun=rank is not None)
    from distributed_training.training.lockstep import Leader  # only here: most nodes are alone

    if rank is None:
        children = Children(size)
        stack.callback(children.close)
        rank = Rank(0, size, children.meet)
    team = Leader(rank)
    stack.callback(team.close)
    return team


def join_team(team: Leader | None, config: NodeConfig, manifest: RunManifest, engine: Engine) -> None:
    """Blocks until all have the model. Raises LocalFault."""
    if team is None:
        return
    from distributed_training.training.lockstep import Hello

    cuda = rank_device(config.device, 0) != "cpu"
    try:
        team.join(Hello(manifest, cuda, config.threads, choices(config)))
    except MemoryError as error:
        raise OutOfMemory(said(error), retry=False) from None
    log.info("%d processes share each step, %d sequences each", team.size, manifest.data.batch_size // team.size)


def _check(config: NodeConfig, batch_size: int, size: int, *, torchrun: bool) -> None:
    asked = f"torchrun --nproc-per-node {size}" if torchrun else f"--gpus {size}"
    if batch_size % size:
        fits = ", ".join(str(n) for n in range(1, min(batch_size, 64) + 1) if batch_size % n == 0)
        raise ConfigError(f"{asked}: a step of this run has {batch_size} sequences to share evenly; give one of {fits}")
    if rank_device(config.device, 0) == "cpu":
        if config.device != "cpu":
            why = no_gpu(seen_gpus(), torch_here())[0] or "torch finds no GPU"
            raise ConfigError(f"{asked}: {why}; processes on the CPU have to be asked for with --device cpu")
    elif (count := torch.cuda.device_count()) < size:
        raise ConfigError(f"{asked}: torch finds {count} GPUs here")
