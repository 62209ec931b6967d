"""What is wrong with a demo's options, its ports or its disk, before anything is installed. Standard library only.

scripts/demo.sh runs it with the Python that it found: `python -m distributed_training.localnet.before OPTIONS`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distributed_training.localnet.options import Options, parse_options
from distributed_training.localnet.run.ports import check_named
from distributed_training.localnet.run.room import check_room
from distributed_training.settings.entry import run_main


def asked(argv: Sequence[str]) -> Options:
    """Raises ConfigError; `--help` prints and exits 0."""
    options = parse_options(argv)
    check_named(options)
    check_room(options)
    return options


def main() -> int:
    argv = sys.argv[1:]
    if not {"-h", "--help"} & set(argv):  # which is shown when all is installed, as people use it to install
        asked(argv)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
