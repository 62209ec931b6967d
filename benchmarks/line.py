"""Does a cap on a node's line hold on the wire? Two libp2p nodes over loopback, a relay between them that counts."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from distributed_training.network.base import Stream
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.ports import free_port
from distributed_training.settings.arguments import real, whole

DESCRIPTION = """Caps on a node's line (--network.up_mbit, --network.down_mbit): rows of way, cap_mbit, streams,
wire_mbit, ratio, measured_mbit, ahead_bytes.

Two real libp2p nodes; every byte between them, handshake and frames included, passes a relay that counts it. One sends
to the other over several streams at once, as fast as it may. wire_mbit: at the relay, over the last two thirds of the
time. measured_mbit: what the node itself says of its line. ahead_bytes: sent by the other side and not read by the node
yet, at the end, a stream: what buffers on the way hold. A ratio outside 0.9 to 1.1 is a failure."""

HOST = "127.0.0.1"
METHOD = "bulk"
FRAME_BYTES = 256 * 1024
WAIT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mbit", type=real(0.5, 1e4, "Mbit/s"), nargs="+", default=[4.0, 40.0], metavar="R", help="default 4 40")
    add("--streams", type=whole(1, 64, "streams"), default=4, metavar="N", help="at once; default 4")
    add("--seconds", type=real(3.0, 600.0, "seconds"), default=9.0, metavar="S", help="of each row; default 9")


def run(args: argparse.Namespace) -> dict[str, Any]:
    rows = [
        asyncio.run(measured(way, mbit, args.streams, args.seconds)) for way in ("up", "down") for mbit in args.mbit
    ]
    return {"name": "line", "rows": rows, "failures": failures(rows)}


def failures(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{row['way']} {row['cap_mbit']:g} Mbit/s: {row['wire_mbit']} on the wire"
        for row in rows
        if not 0.9 <= row["ratio"] <= 1.1
    ]


class Relay:
    """Forwards connections from `listen` to `target` and counts what the dialler sends."""

    def __init__(self, listen: int, target: int) -> None:
        self.bytes = 0
        self._listen, self._target = listen, target

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, HOST, self._listen, limit=1 << 16)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            back, there = await asyncio.open_connection(HOST, self._target, limit=1 << 16)
            await asyncio.gather(self._pass(reader, there, count=True), self._pass(back, writer, count=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                self.bytes += len(data) if count else 0
                writer.write(data)
                await writer.drain()
            writer.close()


async def measured(way: str, mbit: float, count: int, seconds: float) -> dict[str, Any]:
    """One row: `count` streams for so long, with the cap on who sends ("up") or who receives ("down")."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="line-")))
        port, between = await free_port(HOST, 0), await free_port(HOST, 0)
        sender = Libp2pTransport(folder / "sender.key", HOST, None, hints=False)
        receiver = Libp2pTransport(folder / "receiver.key", HOST, port, hints=False)
        cap = mbit * 1e6 / 8
        (sender if way == "up" else receiver).traffic.line.limit(*((cap, None) if way == "up" else (None, cap)))
        receiver.serve(METHOD, swallow)
        for transport in (receiver, sender):  # the sender is stopped first: its streams end, and so do the handlers
            stack.push_async_callback(transport.stop)
            await transport.start()
        relay = await stack.enter_async_context(Relay(between, port))
        sender.learn(receiver.peer_key, (HOST, between))
        tasks = [asyncio.create_task(pour(sender, receiver.peer_key), name="pour") for _ in range(count)]
        try:
            await asyncio.sleep(seconds / 3)
            first = relay.bytes
            await asyncio.sleep(seconds * 2 / 3)
            last, read = relay.bytes, receiver.traffic.received
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        wire = (last - first) * 8 / (seconds * 2 / 3) / 1e6
        lane = sender.traffic.line.up if way == "up" else receiver.traffic.line.down
        said = lane.rate.bytes_per_s
    return {
        "way": way,
        "cap_mbit": mbit,
        "streams": count,
        "wire_mbit": round(wire, 3),
        "ratio": round(wire / mbit, 3),
        "measured_mbit": None if said is None else round(said * 8 / 1e6, 2),
        "ahead_bytes": max(0, last - read) // count,
    }


async def swallow(stream: Stream) -> None:
    while True:
        await stream.read(FRAME_BYTES, WAIT_S)


async def pour(transport: Libp2pTransport, peer_key: bytes) -> None:
    stream, frame = await transport.open(peer_key, METHOD, WAIT_S), bytes(FRAME_BYTES)
    while True:
        await stream.write(frame, WAIT_S)
