"""python -m distributed_training.localnet --help"""

from __future__ import annotations

import sys

from distributed_training.localnet.options import parse_options
from distributed_training.settings.config import run_main


def start() -> int:
    options = parse_options(sys.argv[1:])
    from distributed_training.localnet.demo import run_demo  # late: it loads torch, and a wrong flag should not wait

    return run_demo(options)


if __name__ == "__main__":
    sys.exit(run_main(start))
