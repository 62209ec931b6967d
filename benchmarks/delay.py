"""A TCP forwarder that adds a one-way delay in each direction, for kernels without netem.

Put it in front of a node's port: the node announces the forwarder's address. Rates are not limited here (use tbf); the
delay holds for bytes of an open connection and for the connection's beginning and end, in order. TCP itself ends at
the forwarder, so its windows see the short round trip: throughput of one stream is not limited by the added delay.

    python benchmarks/delay.py --listen 10.77.0.1:9000 --to 127.0.0.1:9001 --ms 40
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress

READ_BYTES = 1 << 16
MAX_IN_FLIGHT = 1024  # reads per direction: 64 MiB

Address = tuple[str, int]


class DelayForwarder:
    """Forwards connections to `listen` on to `target`, each way `delay_s` late. `async with`, or start and stop."""

    def __init__(self, listen: Address, target: Address, delay_s: float) -> None:
        self._listen = listen
        self._target = target
        self._delay_s = delay_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._server = await asyncio.start_server(self._accept, *self._listen)

    async def stop(self) -> None:
        """Cut every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=2.0)

    async def __aenter__(self) -> DelayForwarder:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> Address:
        """Where it listens; the real port if 0 was asked."""
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(OSError, asyncio.CancelledError):
            await self._forward(reader, writer)
        writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay_s)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pipe(reader, far_writer))
                group.create_task(self._pipe(far_reader, writer))
        except* OSError:
            pass  # one side hung up: so does the other
        finally:
            far_writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until the end, then pass the end on: a half-closed connection stays half-closed."""
        clock = asyncio.get_running_loop().time
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_IN_FLIGHT)

        async def read() -> None:
            data = b"."
            while data:
                data = await reader.read(READ_BYTES)
                await late.put((clock() + self._delay_s, data))

        async def write() -> None:
            while True:
                due, data = await late.get()
                await asyncio.sleep(max(0.0, due - clock()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _serve(listen: Address, target: Address, delay_s: float) -> None:
    async with DelayForwarder(listen, target, delay_s):
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Forward TCP connections with a one-way delay in each direction.")
    parser.add_argument("--listen", type=_address, required=True, metavar="IP:PORT")
    parser.add_argument("--to", type=_address, required=True, metavar="IP:PORT")
    parser.add_argument("--ms", type=float, required=True, help="delay of each direction in milliseconds")
    given = parser.parse_args()
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.listen, given.to, given.ms / 1000))


if __name__ == "__main__":
    main()
