"""A node of its own process for test_libp2p_processes.py: serves `echo` and `sink`, prints its key and port."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from distributed_training.network.base import Stream
from distributed_training.network.libp2p import Libp2pTransport

FRAME_BYTES = 1 << 20


async def echo(stream: Stream) -> None:
    await stream.write(await stream.read(FRAME_BYTES, 10), 10)


async def sink(stream: Stream) -> None:
    while await stream.read(FRAME_BYTES, 10):
        pass
    await stream.write(b"done", 10)


async def main(identity: Path, port: int) -> None:
    transport = Libp2pTransport(identity, port=port)
    transport.serve("echo", echo)
    transport.serve("sink", sink)
    await transport.start()
    assert transport.address is not None
    print(transport.peer_key.hex(), transport.address[1], flush=True)
    await asyncio.sleep(120)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
