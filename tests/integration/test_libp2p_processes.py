"""libp2p between processes: goodput, death by SIGKILL without leftovers, restart, address hints, a taken port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from asking import ask

from distributed_training.errors import ConfigError, NetworkFault
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.libp2p import Libp2pTransport

ROOT = Path(__file__).parents[2]
NODE = Path(__file__).with_name("libp2p_node.py")
FRAME = bytes(1 << 20)


@asynccontextmanager
async def node_process(identity: Path, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytes, int]]:
    """A started node: its process, peer key and port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(NODE), str(identity), str(port),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            key, bound = (await process.stdout.readline()).split()
        yield process, bytes.fromhex(key.decode()), int(bound)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def running(*transports: Libp2pTransport) -> AsyncIterator[None]:
    try:
        for transport in transports:
            await transport.start()
        yield
    finally:
        for transport in transports:
            await transport.stop()


def daemons_of(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == "p2pd"]


async def test_a_killed_node_leaves_no_daemon_and_can_return(tmp_path: Path) -> None:
    here = Libp2pTransport(tmp_path / "here.key")
    async with running(here):
        async with node_process(tmp_path / "there.key") as (process, key, port):
            here.learn(key, ("127.0.0.1", port))
            stream = await here.open(key, "sink", 10)
            began = time.monotonic()
            for _ in range(128):
                await stream.write(FRAME, 10)
            await stream.write(b"", 10)
            assert await stream.read(4, 10) == b"done"
            goodput = 128 * len(FRAME) / (time.monotonic() - began)
            print(f"goodput {goodput / 1e6:.0f} MB/s in frames of 1 MiB")
            assert goodput > 5e6

            daemons = daemons_of(process.pid)
            assert len(daemons) == 1
            os.kill(process.pid, signal.SIGKILL)
            killed = time.monotonic()
            _, alive = await asyncio.to_thread(psutil.wait_procs, daemons, 5)
            assert not alive, "p2pd outlived its node by 5 s"
            print(f"p2pd ended {time.monotonic() - killed:.2f} s after its node")
            with pytest.raises(NetworkFault):
                await ask(here, key, "echo", b"x", max_bytes=1, timeout_s=5)

        async with node_process(tmp_path / "there.key", port) as (_, again, _):
            assert again == key
            assert await ask(here, key, "echo", b"back", max_bytes=4, timeout_s=10) == b"back"


async def test_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    a, b = Libp2pTransport(tmp_path / "a", hints=False), Libp2pTransport(tmp_path / "b", hints=False)

    async def answer(stream) -> None:
        await stream.write(await stream.read(1, 5), 5)

    async with running(a, b):
        assert b.address is not None
        a.learn(b.peer_key, b.address)
        b.serve("echo", answer)
        assert await ask(a, b.peer_key, "echo", b"x", max_bytes=1, timeout_s=5) == b"x"
        before = set(daemons_of(os.getpid()))
        for daemon in before:
            daemon.kill()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await ask(a, b.peer_key, "echo", b"x", max_bytes=1, timeout_s=5) == b"x"
                    break
                except NetworkFault:
                    await asyncio.sleep(0.2)
        assert not before & set(daemons_of(os.getpid()))
    assert not daemons_of(os.getpid())


async def test_an_address_that_the_chain_lacks_is_found_on_the_hint_board(tmp_path: Path) -> None:
    a, b, c = (Libp2pTransport(tmp_path / name) for name in "abc")

    async def answer(stream) -> None:
        await stream.write(await stream.read(1, 5), 5)

    async with running(a, b, c):
        for transport in (a, b, c):
            transport.serve("echo", answer)
        for newcomer in (a, c):  # both know only b
            assert b.address is not None
            newcomer.learn(b.peer_key, b.address)
            await ask(newcomer, b.peer_key, "echo", b"x", max_bytes=1, timeout_s=5)
        assert a._hints is not None
        async with asyncio.timeout(15):
            while await a._hints.find(c.peer_key) != c.address:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert await ask(a, c.peer_key, "echo", b"x", max_bytes=1, timeout_s=5) == b"x"


async def test_a_taken_port_is_a_config_error_before_any_daemon_starts(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        transport = Libp2pTransport(tmp_path / "key", port=port)
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            await transport.start()
        assert not daemons_of(os.getpid())
        await transport.stop()


async def test_another_identity_at_a_known_address_is_refused(tmp_path: Path) -> None:
    a, b = Libp2pTransport(tmp_path / "a", hints=False), Libp2pTransport(tmp_path / "b", hints=False)
    expected = PeerIdentity(bytes(range(32))).public_key
    async with running(a, b):
        assert b.address is not None
        a.learn(expected, b.address)
        with pytest.raises(NetworkFault):
            await a.open(expected, "echo", 5)


def test_importing_hivemind_leaves_logging_and_signals_alone() -> None:
    """In a process of its own: a background job's SIGINT is ignored from the start, and stays as it was."""
    program = """
import logging, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import distributed_training.network.libp2p
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert logging.getLevelName(logging.WARNING) == "WARNING"
hivemind = logging.getLogger("hivemind")
assert hivemind.handlers == [] and hivemind.propagate
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
