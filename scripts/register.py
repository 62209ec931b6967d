"""Register a hotkey on a local run's chain: make its key, pay for a uid, print it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from distributed_training.chain.keys import LOCAL_WALLET
from distributed_training.chain.local.register import register_local
from distributed_training.errors import ChainFault, ConfigError
from distributed_training.settings.arguments import Parser

DESCRIPTION = """\
Give a newcomer a place on the local subnet of a run directory (made by scripts/demo.sh).

It makes the wallet key NAME if the run has none (derived from the run's seed: worthless on a real network), puts
play money on its coldkey, buys a registration and prints the uid. Run it again and nothing more happens.
On a real network you use `btcli tx burned-register` with real money instead.
"""
EPILOG = """\
example:
  python scripts/register.py --run-dir runs/local --wallet.hotkey extra
  python neurons/miner.py --preset local --run-dir runs/local --wallet.hotkey extra --axon.port 9150

A validator also needs stake, and gets its permit at the end of the epoch:
  python scripts/register.py --run-dir runs/local --wallet.hotkey extra-validator --stake 1000
"""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--run-dir", type=Path, required=True, help="directory of the local run")
    parser.add_argument("--wallet.hotkey", dest="hotkey", required=True, metavar="NAME", help="name of the hotkey")
    parser.add_argument(
        "--wallet.name", dest="wallet", default=LOCAL_WALLET, metavar="NAME", help="wallet (default: local)"
    )
    parser.add_argument("--stake", type=float, default=0.0, metavar="ALPHA", help="stake to add (default: none)")
    options = parser.parse_args(arguments)
    if not 0 <= options.stake <= 1e9:
        parser.error(f"--stake: expected 0 to 1e9 alpha, got {options.stake}")
    if "/" in options.hotkey or "/" in options.wallet:
        parser.error("--wallet.hotkey and --wallet.name: expected names, not paths")
    return options


def main(arguments: list[str] | None = None) -> int:
    try:
        options = parse(arguments)
        chain_file, wallets = options.run_dir / "chain.sqlite", options.run_dir / "wallets"
        done = asyncio.run(register_local(chain_file, wallets, options.wallet, options.hotkey, options.stake))
    except (ConfigError, ChainFault) as error:
        print(f"register: {error}", file=sys.stderr)
        return 2
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
    sys.exit(main())
