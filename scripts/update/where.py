"""What this version makes of a node's settings, as one line of JSON: for the launcher, which imports none of it.

Run by the version's own Python, in a process of its own: python scripts/update/where.py miner --netuid 1 ...
"""

from __future__ import annotations

import json
import sys

from distributed_training.protocol.types import Role
from distributed_training.settings.config import RUN_PLACE, load_config
from distributed_training.settings.entry import run_main


def main() -> int:
    config = load_config(Role[sys.argv[1].upper()], sys.argv[2:])
    from distributed_training.chain.keys import load_public_key  # late: a wrong flag should not wait for it

    wallet = config.wallet
    answer = {
        "name": f"{config.netuid}-{wallet.name}-{wallet.hotkey}",
        "hotkey": load_public_key(wallet.path, wallet.name, wallet.hotkey).hex(),
        "run_dir": str(config.run_dir).replace(RUN_PLACE, "*") if config.run_is_open else str(config.run_dir),
        "open": config.run_is_open,
        "folder": f"nodes/{wallet.hotkey}",
        "json_lines": config.logging.json_lines,
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
