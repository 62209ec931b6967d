"""What the adversaries share: the flags of a miner, and the pages an honest miner would have named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from distributed_training.data.loader import pages_used
from distributed_training.engine import Engine
from distributed_training.node import main
from distributed_training.preflight import prepare
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.types import Role
from distributed_training.roles.mining.work import Worker, WorkTask, round_permutation
from distributed_training.settings.entry import run_main

MakeCheat = Callable[[Engine, RunManifest, Path], Worker]


def run(make_cheat: MakeCheat) -> int:
    """Run a miner with another worker; `--victim-dir` is the folder of the node that was stolen from."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--victim-dir", type=Path, default=Path())
    own, rest = parser.parse_known_args(sys.argv[1:])
    return run_main(
        lambda: main(
            Role.MINER,
            prepare(Role.MINER, rest),
            lambda engine, manifest: make_cheat(engine, manifest, own.victim_dir),
        )
    )


def assigned_pages(engine: Engine, manifest: RunManifest, task: WorkTask, steps: int) -> tuple[bytes, ...]:
    """Digests of the pages that `steps` honest steps would have used: public, so a cheat names them too."""
    return pages_used(
        engine.source,
        engine.tokenizer,
        round_permutation(manifest, task.round, task.beacon),
        max_uids=manifest.max_uids,
        uid=task.uid,
        batch_size=manifest.data.batch_size,
        sequence_length=manifest.data.sequence_length,
        num_steps=steps,
    )
