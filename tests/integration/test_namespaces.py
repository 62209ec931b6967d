"""The tools behind the network benchmarks do what they say: shaping, NAT, cutting, cleaning up, delay."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.delay import DelayForwarder
from benchmarks.namespaces import Host, Namespaces, sweep, unavailable

SERVE = "import socket,sys;s=socket.create_server((sys.argv[1],9000));print('up',flush=True)\nwhile 1:s.accept()"
DIAL = "import socket,sys;print(socket.create_connection((sys.argv[1],9000),1).getsockname()[0])"
SINK = """import socket,sys,time
s = socket.create_server((sys.argv[1], 9000)); print("up", flush=True)
c, _ = s.accept(); total = 0; began = time.monotonic()
while data := c.recv(1 << 16): total += len(data)
print(total / (time.monotonic() - began), flush=True)
"""
SOURCE = (
    "import socket,sys;c=socket.create_connection((sys.argv[1],9000),5);c.sendall(bytes(int(sys.argv[2])));c.close()"
)


@pytest.fixture
def net() -> Iterator[Namespaces]:
    if reason := unavailable(nat=True):
        pytest.skip(reason)
    with Namespaces() as net:
        yield net


def names() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def up(host: Host, code: str) -> subprocess.Popen[str]:
    process = host.popen([sys.executable, "-c", code, "0.0.0.0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    return process


def dial(host: Host, address: str) -> str | None:
    """The caller's address as its own socket knows it; None if nobody answered within a second."""
    try:
        return host.run([sys.executable, "-c", DIAL, address], 5).strip()
    except subprocess.CalledProcessError:
        return None


def test_a_host_behind_nat_dials_out_and_cannot_be_dialled(net: Namespaces) -> None:
    outside, inner = net.host("outside"), net.behind_nat("home")
    up(outside, SERVE)
    up(inner, SERVE)
    gateway = net.gateway_of(inner)
    up(gateway, SERVE)
    assert dial(inner, outside.address) == inner.address
    assert dial(outside, outside.address) == outside.address
    assert dial(outside, inner.address) is None
    assert dial(outside, gateway.address) is None


def test_a_cut_host_is_silent_until_it_is_mended(net: Namespaces) -> None:
    a, b = net.host("a"), net.host("b")
    up(b, SERVE)
    b.cut()
    b.cut()
    assert dial(a, b.address) is None
    b.mend()
    assert dial(a, b.address) == a.address


@pytest.mark.parametrize("side", ["egress", "ingress"])
def test_a_link_carries_its_rate(net: Namespaces, side: str) -> None:
    rate = 2_000_000
    fast, shaped = net.host("fast"), net.host("shaped", **{side: rate})
    source, sink = (shaped, fast) if side == "egress" else (fast, shaped)
    process = up(sink, SINK)
    source.run([sys.executable, "-c", SOURCE, sink.address, "3000000"], 20)
    assert process.stdout is not None
    measured = float(process.stdout.readline())
    assert 0.7 * rate < measured < 1.15 * rate
    assert sink.received() > 3_000_000 < source.sent()


def test_nothing_is_left_behind_even_after_an_error() -> None:
    if reason := unavailable():
        pytest.skip(reason)
    with pytest.raises(ZeroDivisionError), Namespaces() as net:
        host = net.host("a")
        sleeper = up(host, "import signal,time;signal.signal(15,signal.SIG_IGN);print('up',flush=True);time.sleep(99)")
        raise ZeroDivisionError
    assert sleeper.poll() is not None
    assert host.netns not in names()
    net.close()


def test_what_a_killed_run_left_is_swept() -> None:
    if reason := unavailable():
        pytest.skip(reason)
    code = "from benchmarks.namespaces import *;import os;n=Namespaces().__enter__();n.host('a');os._exit(9)"
    dead = subprocess.Popen([sys.executable, "-c", code])
    dead.wait(20)
    assert f"dt-{dead.pid}-" in names()
    sweep()
    assert f"dt-{dead.pid}-" not in names()


async def test_the_forwarder_delays_each_direction_and_keeps_order_and_ends() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(-1))
        writer.write_eof()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[:2]
    async with server, DelayForwarder(("127.0.0.1", 0), target, 0.1) as forwarder:
        reader, writer = await asyncio.open_connection(*forwarder.address)
        began = time.monotonic()
        sent = bytes(range(256)) * 4000
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        assert 0.2 <= time.monotonic() - began < 2.0
        writer.close()
