"""The node as a process, with no subnet yet: python tests/devnode/__main__.py --root DIR [--port N] [--spec N]."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

if not __package__:  # run as a file: the package is the folder it lies in
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from devnode import SPECS, DevNode, bare_chain


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="an empty folder for its chain")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--block-seconds", type=float, default=0.25)
    parser.add_argument("--spec", type=int, choices=SPECS, default=SPECS[-1], help="version of the runtime")
    return parser.parse_args()


async def main(args: argparse.Namespace) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with DevNode(bare_chain(args.root, args.block_seconds), spec=args.spec, port=args.port) as node:
        print(node.endpoint, flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(_arguments()))
