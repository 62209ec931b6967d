"""python -m distributed_training.localnet --help"""

from __future__ import annotations

import sys

from distributed_training.localnet.before import asked
from distributed_training.localnet.layout import lock_run
from distributed_training.localnet.run.ports import with_ports
from distributed_training.settings.entry import only_loading, run_main


def start() -> int:
    asked_for = asked(sys.argv[1:])
    with lock_run(asked_for.run_dir) as lock, with_ports(asked_for) as options:
        with only_loading():
            from distributed_training.localnet.demo import run_demo  # late: it loads torch; a refusal should not wait

        return run_demo(options, lock)


if __name__ == "__main__":
    sys.exit(run_main(start))
