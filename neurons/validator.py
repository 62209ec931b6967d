"""Run a validator of a distributed-training subnet: python neurons/validator.py --help"""

from __future__ import annotations

import os
import sys

from distributed_training.protocol.types import Role
from distributed_training.settings.entry import only_loading, run_main
from distributed_training.training.team import torchrun_rank


def start() -> int:
    if (rank := torchrun_rank(os.environ)) is not None and rank.number:
        with only_loading(stopped=0):
            from distributed_training.training.follow import follow

        return follow(rank)
    from distributed_training.preflight import prepare  # within run_main, which says what goes wrong here

    config = prepare(Role.VALIDATOR, sys.argv[1:])
    with only_loading(stopped=0):
        from distributed_training.node import main  # late: it loads torch, and a wrong flag should not wait for that

    return main(Role.VALIDATOR, config)


if __name__ == "__main__":
    sys.exit(run_main(start, stopped=0))
