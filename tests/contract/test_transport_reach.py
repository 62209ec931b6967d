"""The network seam where peers cannot be dialled, do not answer, or come back, on both transports; libp2p in detail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from asking import ask

from distributed_training.errors import DeadlineMissed, NetworkFault
from distributed_training.network.base import Stream
from distributed_training.network.daemon_transport import DIAL_S
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.roles.outside import KnockService, Witnesses

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests" / "integration" / "libp2p_node.py"
WAIT_S = 10.0

AnyTransport = MemoryTransport | Libp2pTransport
Make = Callable[[str, bool], AnyTransport]


@pytest.fixture(params=["memory", "libp2p"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """(name, whether it listens) -> a transport, not started; the same name has the same identity."""
    switch = MemorySwitch()

    def transport(name: str, listens: bool = True) -> AnyTransport:
        path = tmp_path / f"{name}.key"
        if request.param == "memory":
            return MemoryTransport(switch, PeerIdentity.load_or_create(path), listens=listens)
        return Libp2pTransport(path, port=0 if listens else None, hints=False)

    return transport


@asynccontextmanager
async def running(*transports: AnyTransport) -> AsyncIterator[None]:
    try:
        for transport in transports:
            transport.serve("echo", echo)
            await transport.start()
        yield
    finally:
        for transport in transports:
            await transport.stop()


async def echo(stream: Stream) -> None:
    await stream.write(await stream.read(1 << 20, WAIT_S), WAIT_S)


async def reaches(a: AnyTransport, b: AnyTransport) -> bool:
    try:
        return await ask(a, b.peer_key, "echo", b"x", max_bytes=1, timeout_s=WAIT_S) == b"x"
    except NetworkFault:
        return False


def address_of(transport: AnyTransport) -> tuple[str, int]:
    address = transport.address if isinstance(transport, Libp2pTransport) else ("127.0.0.1", 1)
    assert address is not None
    return address


async def test_a_peer_without_a_port_is_reached_over_the_connection_that_it_opened(make: Make) -> None:
    inside, outside = make("inside", False), make("outside", True)
    async with running(inside, outside):
        inside.learn(outside.peer_key, address_of(outside))
        outside.learn(inside.peer_key)
        began = time.monotonic()
        assert not await reaches(outside, inside)
        assert time.monotonic() - began < 1.0, "nobody waits for who has no port"
        assert await reaches(inside, outside)
        assert await reaches(outside, inside)
        assert await reaches(outside, inside)


async def test_a_dropped_connection_is_dialled_again(make: Make) -> None:
    a, b = make("a", True), make("b", True)
    async with running(a, b):
        a.learn(b.peer_key, address_of(b))
        assert await reaches(a, b)
        await a.disconnect(b.peer_key)
        await a.disconnect(b.peer_key)
        assert await reaches(a, b)
        await a.disconnect(PeerIdentity(bytes(32)).public_key)


async def test_a_peer_that_restarts_with_its_key_is_found_again(make: Make) -> None:
    a, b = make("a", True), make("b", True)
    async with running(a):
        async with running(b):
            a.learn(b.peer_key, address_of(b))
            assert await reaches(a, b)
        assert not await reaches(a, b)
        again = make("b", True)
        async with running(again):
            assert again.peer_key == b.peer_key
            a.learn(again.peer_key, address_of(again))  # on another port, as after a change of its flags
            assert await reaches(a, again)


async def test_a_stranger_learns_where_it_is_seen_and_whether_its_port_is_open(make: Make) -> None:
    first, second, newcomer, hidden = make("a", True), make("b", True), make("newcomer", True), make("hidden", False)
    async with running(first, second, newcomer, hidden):
        for validator in (first, second):
            KnockService(PeerBook(validator, 1, bytes(32), lambda _: b"", lambda *_: False), public=False)
            newcomer.learn(validator.peer_key, address_of(validator))
            hidden.learn(validator.peer_key, address_of(validator))
        seen_at = "127.0.0.1" if isinstance(newcomer, Libp2pTransport) else newcomer.source
        port = (address_of(newcomer) or ("", 0))[1]
        assert await Witnesses(newcomer, lambda: [first.peer_key], False).look(port) == [(seen_at, True)]
        assert await Witnesses(hidden, lambda: [first.peer_key], False).look(port) == [], (
            "strangers of one address have one turn"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shut = probe.getsockname()[1]
        is_open = isinstance(hidden, MemoryTransport)  # addresses mean nothing there
        assert await Witnesses(hidden, lambda: [second.peer_key], False).look(shut) == [(seen_at, is_open)]


# --- libp2p alone ----------------------------------------------------------------------------------------


def black_hole(stack: ExitStack) -> tuple[str, int]:
    """An address where connections are neither refused nor accepted: a listener whose queue is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return listener.getsockname()


async def test_an_address_that_never_answers_costs_a_bounded_time(tmp_path: Path) -> None:
    a = Libp2pTransport(tmp_path / "a", hints=False)
    nobody = PeerIdentity(bytes(range(32))).public_key
    with ExitStack() as stack:
        async with running(a):
            address = black_hole(stack)
            a.learn(nobody, address)
            began = time.monotonic()
            with pytest.raises(DeadlineMissed, match="nobody answers"):
                await a.open(nobody, "echo", 60)
            assert DIAL_S * 0.9 < time.monotonic() - began < DIAL_S + 2
            assert not await a.answers(address, 0.2)
            assert a.address is not None and await a.answers(a.address, WAIT_S)


@pytest.mark.alone  # it measures seconds
async def test_false_addresses_beside_the_true_one_delay_nobody(tmp_path: Path) -> None:
    """Where nothing is said, and where nobody answers: all of them stand first."""
    a, b = (Libp2pTransport(tmp_path / name, hints=False) for name in ("a", "b"))
    with ExitStack() as stack:
        async with running(a, b):
            mute = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(12)]
            false = [listener.getsockname() for listener in mute] + [black_hole(stack)]
            a.learn(b.peer_key, *false, address_of(b))
            began = time.monotonic()
            assert await reaches(a, b)
            assert time.monotonic() - began < DIAL_S / 2


@asynccontextmanager
async def node(identity: Path, *before: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, bytes, int, list[int]]]:
    """A node in a process of its own: the process, peer key, port, and the pids of all that it started."""
    process = await asyncio.create_subprocess_exec(
        *before, sys.executable, str(NODE), str(identity), "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    started = [process.pid]
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            key, port = (await process.stdout.readline()).split()
        started += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        yield process, bytes.fromhex(key.decode()), int(port), started
    finally:
        for pid in started:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def test_a_frozen_peer_stops_nobody_for_longer_than_the_deadline(tmp_path: Path) -> None:
    a = Libp2pTransport(tmp_path / "a", hints=False)
    async with running(a), node(tmp_path / "b") as (_, key, port, started):
        a.learn(key, ("127.0.0.1", port))
        stream = await a.open(key, "sink", WAIT_S)
        await stream.write(bytes(1000), WAIT_S)
        for pid in started:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DeadlineMissed):
            await stream.write(bytes(64 << 20), 1.0)
        with pytest.raises(DeadlineMissed):
            await ask(a, key, "echo", b"x", max_bytes=1, timeout_s=1.0)
        assert time.monotonic() - began < 5
        for pid in started:
            os.kill(pid, signal.SIGCONT)
        assert await ask(a, key, "echo", b"x", max_bytes=1, timeout_s=WAIT_S) == b"x"


async def ended(pids: list[int], within_s: float) -> bool:
    def gone(pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    try:
        async with asyncio.timeout(within_s):
            while not all(gone(pid) for pid in pids):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("ending", [signal.SIGABRT, signal.SIGKILL], ids=["abort", "kill"])
async def test_no_daemon_survives_its_node(tmp_path: Path, ending: signal.Signals) -> None:
    async with node(tmp_path / "b") as (process, _, _, started):
        # the node, its daemon and, where multiprocessing does not start by fork, the tracker of its semaphores
        assert "p2pd" in [psutil.Process(pid).name() for pid in started]
        os.kill(process.pid, ending)
        assert await ended(started, 5)
