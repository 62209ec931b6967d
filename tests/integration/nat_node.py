"""A node of its own process for test_nat.py.

nat_node.py IDENTITY outside HOST PORT     listens; whoever asks `call me` is called back, and told what came of it
nat_node.py IDENTITY inside                listens nowhere; reads "KEY HOST PORT" from stdin, asks to be called
nat_node.py IDENTITY newcomer 0.0.0.0 PORT reads "KEY HOST PORT" from stdin, asks there at which address it is seen
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from asking import ask

from distributed_training.errors import ConfigError, NetworkFault
from distributed_training.network.base import Stream
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.peers import PeerBook
from distributed_training.roles.outside import KnockService, Witnesses

WAIT_S = 10.0


async def echo(stream: Stream) -> None:
    await stream.write(await stream.read(1 << 20, WAIT_S), WAIT_S)


async def outside(transport: Libp2pTransport) -> None:
    async def call_back(stream: Stream) -> None:
        await stream.read(10, WAIT_S)
        payload = bytes(1 << 20)
        answer = await ask(transport, stream.peer_key, "echo", payload, max_bytes=1 << 20, timeout_s=WAIT_S)
        await stream.write(b"reached" if answer == payload else b"garbled", WAIT_S)

    async def dial(stream: Stream) -> None:
        """Drop the connection it came over, as a restart does, and try to reach it afterwards."""
        await stream.read(10, WAIT_S)
        await transport.disconnect(stream.peer_key)
        try:
            await ask(transport, stream.peer_key, "echo", b"x", max_bytes=1, timeout_s=WAIT_S)
            print("reached", flush=True)
        except NetworkFault as fault:
            print(f"not reached: {fault}", flush=True)

    transport.serve("call me", call_back)
    KnockService(PeerBook(transport, 1, bytes(32), lambda _: b"", lambda *_: False), public=False)
    transport.serve("dial me", dial)
    await transport.start()
    print(transport.peer_key.hex(), flush=True)
    await asyncio.sleep(120)


async def inside(transport: Libp2pTransport) -> None:
    transport.serve("echo", echo)
    await transport.start()
    print(transport.peer_key.hex(), transport.address, flush=True)
    key, host, port = (await asyncio.to_thread(sys.stdin.readline)).split()
    peer = bytes.fromhex(key)
    transport.learn(peer, (host, int(port)))
    for _ in range(2):
        print((await ask(transport, peer, "call me", b"x", max_bytes=10, timeout_s=WAIT_S)).decode(), flush=True)
    try:
        await ask(transport, peer, "dial me", b"x", max_bytes=10, timeout_s=WAIT_S)
    except NetworkFault:
        pass  # it was cut off
    await asyncio.to_thread(sys.stdin.readline)
    print((await ask(transport, peer, "call me", b"x", max_bytes=10, timeout_s=WAIT_S)).decode(), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def newcomer(transport: Libp2pTransport) -> None:
    await transport.start()
    assert transport.address is None, "it listens everywhere"
    print("up", flush=True)
    key, host, port = (await asyncio.to_thread(sys.stdin.readline)).split()
    transport.learn(bytes.fromhex(key), (host, int(port)))
    try:
        print(*await Witnesses(transport, lambda: [bytes.fromhex(key)], public=False).find(int(port), None), flush=True)
    except ConfigError as error:
        print(error, flush=True)


async def main(identity: Path, where: str, host: str = "", port: str = "0") -> None:
    transport = Libp2pTransport(identity, host, None if where == "inside" else int(port), hints=False)
    try:
        await {"outside": outside, "inside": inside, "newcomer": newcomer}[where](transport)
    finally:
        await transport.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
