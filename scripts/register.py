"""Register a hotkey on a local run's chain: make its key, pay for a uid, print it."""

from __future__ import annotations

import asyncio
import sys

from distributed_training.chain.keys import LOCAL_WALLET
from distributed_training.settings.arguments import Parser, file_name, folder, real
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Give a newcomer a place on the local subnet of a run directory (made by scripts/demo.sh).

It makes the wallet key NAME if the run has none (derived from the run's seed: worthless on a real network), puts
play money on its coldkey, buys a registration and prints the uid. Run it again and nothing more happens.
On a real network you use `btcli tx burned-register` with real money instead: a node that is not registered says how.
"""
EXAMPLES = """\
  python scripts/register.py --run-dir runs/local --wallet.hotkey extra
  python neurons/miner.py --preset local --run-dir runs/local \\
      --wallet.hotkey extra --axon.port 9150
  a validator also needs stake, and gets its permit at the end of the epoch
  python scripts/register.py --run-dir runs/local --stake 1000 \\
      --wallet.hotkey extra-validator
"""


def parser() -> Parser:
    made = Parser(description=DESCRIPTION, examples=EXAMPLES)
    add = made.add_argument
    add("--run-dir", type=folder, required=True, metavar="DIR", help="directory of the local run")
    add("--wallet.hotkey", type=file_name, dest="hotkey", required=True, metavar="NAME", help="name of the hotkey")
    add("--wallet.name", type=file_name, dest="wallet", default=LOCAL_WALLET, metavar="NAME", help="default: local")
    add("--stake", type=real(0, 1e9, "alpha"), default=0.0, metavar="ALPHA", help="stake to add (default: none)")
    return made


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    from distributed_training.chain.local.register import register_local  # late: it loads bittensor

    chain_file, wallets = options.run_dir / "chain.sqlite", options.run_dir / "wallets"
    done = asyncio.run(register_local(chain_file, wallets, options.wallet, options.hotkey, options.stake))
    if done.uid is None:
        print(
            f"{options.hotkey} ({done.key.hotkey}) is registered in block 1; its uid shows once the run's clock starts"
        )
    else:
        print(f"{options.hotkey} ({done.key.hotkey}) {'has now' if done.new else 'had already'} uid {done.uid}")
    if options.stake:
        print(f"added {options.stake:g} alpha of stake; a permit to validate follows at the end of the epoch")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
