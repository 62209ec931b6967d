"""Run a owner of a distributed-training subnet: python neurons/owner.py --help"""

from __future__ import annotations

import sys

from distributed_training.protocol.types import Role
from distributed_training.settings.config import load_config, run_main


def start() -> int:
    config = load_config(Role.OWNER, sys.argv[1:])
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    from distributed_training.node import main  # late: it loads torch, and a wrong flag should not wait for that

    return main(Role.OWNER, config)


if __name__ == "__main__":
    sys.exit(run_main(start))
