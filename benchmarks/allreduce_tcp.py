"""The same bytes over plain TCP, a connection for each pair of peers: what the kernel makes of the lines.

    python benchmarks/allreduce_tcp.py IP PORT NUMBER MINERS BYTES_UP BYTES_DOWN IP:PORT,IP:PORT,...

The peer NUMBER dials those after it in the list. The first MINERS of the list send a part to each other and, when they
have theirs from all, a part to everybody; the rest only receive. It prints a line when all are connected, begins at
a line on its stdin, and prints when it began and had everything.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

PIECE = bytes(1 << 16)
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def send(line: Line, size: int) -> None:
    for at in range(0, size, len(PIECE)):
        line[1].write(PIECE[: min(len(PIECE), size - at)])
        await line[1].drain()


async def take(line: Line, size: int) -> None:
    while size:
        size -= len(await line[0].readexactly(min(size, len(PIECE))))


async def connect(host: str, port: int, number: int, peers: list[tuple[str, int]]) -> dict[int, Line]:
    """By number of the peer."""
    lines: dict[int, Line] = {}
    all_there = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines[int.from_bytes(await reader.readexactly(2), "big")] = reader, writer
        writer.write(b"!")
        if len(lines) == len(peers) - 1:
            all_there.set()

    await asyncio.start_server(accept, host, port)
    for other in range(number + 1, len(peers)):
        lines[other] = await _dial(*peers[other], number)
    if len(lines) < len(peers) - 1:
        await all_there.wait()
    return lines


async def _dial(host: str, port: int, number: int) -> Line:
    """The forwarder in between accepts before there is a peer behind it: the peer has to answer."""
    for _ in range(200):
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(number.to_bytes(2, "big"))
            await reader.readexactly(1)
        except (OSError, EOFError):
            await asyncio.sleep(0.1)
        else:
            return reader, writer
    raise OSError(f"nobody at {host}:{port}")


async def exchange(number: int, miners: int, up: int, down: int, lines: dict[int, Line]) -> None:
    """up, down: bytes of one part of the first and the second half."""
    mines = number < miners
    others = [line for peer, line in lines.items() if peer < miners]
    if mines:
        await asyncio.gather(*(send(line, up) for line in others), *(take(line, up) for line in others))
    sends = [send(line, down) for line in lines.values()] if mines else []
    await asyncio.gather(*sends, *(take(line, down) for line in others))


async def main(host: str, port: int, number: int, miners: int, up: int, down: int, peers: str) -> None:
    addresses = [(address.partition(":")[0], int(address.partition(":")[2])) for address in peers.split(",")]
    lines = await connect(host, port, number, addresses)
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.monotonic()
    await exchange(number, miners, up, down, lines)
    print(json.dumps({"began": began, "ended": time.monotonic()}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # what others still read from us must leave


if __name__ == "__main__":
    _, host, *numbers, peers = sys.argv
    port, number, miners, up, down = map(int, numbers)
    asyncio.run(main(host, port, number, miners, up, down, peers))
