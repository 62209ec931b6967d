"""The network seam: one suite over both transports, on loopback and inside one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from asking import ask

from distributed_training.errors import DeadlineMissed, NetworkFault, PeerFault, WireError
from distributed_training.network.base import Stream
from distributed_training.network.identity import PeerIdentity
from distributed_training.network.libp2p import Libp2pTransport
from distributed_training.network.links import LinkProfile, Links
from distributed_training.network.memory import MemorySwitch, MemoryTransport

AnyTransport = MemoryTransport | Libp2pTransport
Network = Callable[[int], Awaitable[list[AnyTransport]]]

WAIT_S = 10.0  # for what must work; generous, since the machine may be busy
FAST_LINKS = LinkProfile(up_bytes_s=(5e7, 1e8), down_bytes_s=(5e7, 1e8), latency_s=(1e-4, 1e-3))
SHORT_S = 0.3  # for what must fail


@pytest.fixture(params=["memory", "links", "libp2p"])
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    """Makes started transports that know each other's addresses."""
    switch = MemorySwitch(Links(1, FAST_LINKS) if request.param == "links" else None)
    made: list[AnyTransport] = []

    def make(index: int) -> AnyTransport:
        path = tmp_path / f"{index}.key"
        if request.param != "libp2p":
            return MemoryTransport(switch, PeerIdentity.load_or_create(path))
        return Libp2pTransport(path, hints=False)

    async def build(count: int) -> list[AnyTransport]:
        made.extend(make(index) for index in range(count))
        for transport in made:
            await transport.start()
        for transport in made:
            for other in made:
                transport.learn(other.peer_key, getattr(other, "address", ("127.0.0.1", 1)))
        return made

    yield build
    for transport in made:
        await transport.stop()


async def echo(stream: Stream) -> None:
    while True:
        await stream.write(await stream.read(8 << 20, WAIT_S), WAIT_S)


async def sleep_forever(stream: Stream) -> None:
    await asyncio.sleep(3600)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_who_answers_knows_from_where_it_was_asked(network: Network) -> None:
    a, b = await network(2)

    async def tell(stream: Stream) -> None:
        await stream.write((stream.source or "unknown").encode(), WAIT_S)

    b.serve("where", tell)
    stream = await a.open(b.peer_key, "where", WAIT_S)
    said = (await stream.read(100, WAIT_S)).decode()
    assert said == ("127.0.0.1" if isinstance(a, Libp2pTransport) else a.source) and stream.source is None
    await stream.close()


async def test_frames_of_all_sizes_come_back_unchanged(network: Network) -> None:
    a, b = await network(2)
    b.serve("echo", echo)
    stream = await a.open(b.peer_key, "echo", WAIT_S)
    for size in (0, 1, 65_536, 512 * 1024, 512 * 1024 + 1, 3_000_000):
        frame = bytes(range(256)) * (size // 256) + b"\xff" * (size % 256)
        sent = asyncio.create_task(stream.write(frame, WAIT_S))
        assert await stream.read(size, WAIT_S) == frame
        await sent
    await stream.close()


async def test_ask_is_one_request_and_one_answer(network: Network) -> None:
    a, b = await network(2)
    b.serve("echo", echo)
    assert await ask(a, b.peer_key, "echo", b"hello", max_bytes=5, timeout_s=WAIT_S) == b"hello"


async def test_a_method_can_be_served_after_start_and_only_once(network: Network) -> None:
    a, b = await network(2)
    b.serve("late", echo)
    assert await ask(a, b.peer_key, "late", b"x", max_bytes=1, timeout_s=WAIT_S) == b"x"
    with pytest.raises(ValueError, match="already served"):
        b.serve("late", echo)


async def test_the_peer_key_is_the_callers(network: Network) -> None:
    a, b, c = await network(3)

    async def who(stream: Stream) -> None:
        await stream.write(stream.peer_key, WAIT_S)

    b.serve("who", who)
    for caller in (a, c):
        stream = await caller.open(b.peer_key, "who", WAIT_S)
        assert await stream.read(32, WAIT_S) == caller.peer_key
        assert stream.peer_key == b.peer_key
        await stream.close()


async def test_a_frame_over_the_bound_is_refused_before_it_is_buffered(network: Network) -> None:
    a, b = await network(2)
    outcome: list[Exception] = []

    async def bounded(stream: Stream) -> None:
        try:
            await stream.read(1000, WAIT_S)
        except WireError as error:
            outcome.append(error)
            raise

    b.serve("bounded", bounded)
    stream = await a.open(b.peer_key, "bounded", WAIT_S)
    with pytest.raises(NetworkFault):
        # Larger than every buffer on the way: it can only end because the other side refuses it.
        await stream.write(bytes(32 << 20), WAIT_S)
    await eventually(lambda: b.refusals == 1)
    assert "at most 1000" in str(outcome[0])
    assert b.traffic.received == 0
    with pytest.raises(NetworkFault):
        await stream.read(1, SHORT_S)


async def test_a_silent_peer_misses_the_deadline(network: Network) -> None:
    a, b = await network(2)
    b.serve("silent", sleep_forever)
    stream = await a.open(b.peer_key, "silent", WAIT_S)
    began = time.monotonic()
    with pytest.raises(DeadlineMissed):
        await stream.read(10, SHORT_S)
    assert SHORT_S * 0.9 <= time.monotonic() - began < SHORT_S + 2
    with pytest.raises(NetworkFault, match="closed"):
        await stream.write(b"after an error the stream is dead", SHORT_S)


async def test_a_peer_that_does_not_read_stops_the_writer_at_its_deadline(network: Network) -> None:
    a, b = await network(2)
    b.serve("stalled", sleep_forever)
    stream = await a.open(b.peer_key, "stalled", WAIT_S)
    began = time.monotonic()
    with pytest.raises(DeadlineMissed):
        await stream.write(bytes(64 << 20), 1.0)
    assert time.monotonic() - began < 4
    assert a.traffic.sent == 0


async def test_a_failing_handler_closes_its_stream_alone_and_is_counted(network: Network) -> None:
    a, b = await network(2)

    async def broken(stream: Stream) -> None:
        raise RuntimeError("a bug")

    async def offended(stream: Stream) -> None:
        raise PeerFault("not you")

    b.serve("broken", broken)
    b.serve("offended", offended)
    b.serve("echo", echo)
    healthy = await a.open(b.peer_key, "echo", WAIT_S)
    for method in ("broken", "offended"):
        with pytest.raises(NetworkFault):
            await ask(a, b.peer_key, method, b"x", max_bytes=1, timeout_s=WAIT_S)
    await eventually(lambda: b.refusals == 2)
    await healthy.write(b"still here", WAIT_S)
    assert await healthy.read(10, WAIT_S) == b"still here"
    await healthy.close()


async def test_an_unknown_method_fails_and_is_counted(network: Network) -> None:
    a, b = await network(2)
    with pytest.raises(NetworkFault):
        await ask(a, b.peer_key, "nobody-serves-this", b"x", max_bytes=1, timeout_s=WAIT_S)
    await eventually(lambda: b.refusals == 1)


async def test_an_unknown_peer_is_a_network_fault(network: Network) -> None:
    (a,) = await network(1)
    with pytest.raises(NetworkFault):
        await a.open(PeerIdentity(bytes(32)).public_key, "echo", 5.0)


async def test_a_stopped_peer_is_a_network_fault_and_ends_open_reads(network: Network) -> None:
    a, b = await network(2)
    b.serve("silent", sleep_forever)
    stream = await a.open(b.peer_key, "silent", WAIT_S)
    reading = asyncio.create_task(stream.read(1, WAIT_S))
    await asyncio.sleep(0.1)
    await b.stop()
    with pytest.raises(NetworkFault):
        await reading
    with pytest.raises(NetworkFault):
        await ask(a, b.peer_key, "silent", b"x", max_bytes=1, timeout_s=WAIT_S)


async def test_what_was_written_before_close_arrives(network: Network) -> None:
    a, b = await network(2)
    received: list[bytes] = []

    async def collect(stream: Stream) -> None:
        await asyncio.sleep(0.2)
        received.append(await stream.read(4 << 20, WAIT_S))
        await stream.read(1, WAIT_S)

    b.serve("collect", collect)
    stream = await a.open(b.peer_key, "collect", WAIT_S)
    await stream.write(b"z" * 700_000, WAIT_S)
    await stream.close()
    await stream.close()
    await eventually(lambda: bool(received))
    assert received == [b"z" * 700_000]
    await asyncio.sleep(0.1)
    assert b.refusals == 0, "closing between frames is the normal end of a stream"


async def test_many_concurrent_streams_do_not_mix(network: Network) -> None:
    a, b, c = await network(3)
    for transport in (a, b, c):
        transport.serve("echo", echo)

    async def call(caller: AnyTransport, peer: AnyTransport, number: int) -> bool:
        frame = number.to_bytes(4, "big") * 20_000
        return await ask(caller, peer.peer_key, "echo", frame, max_bytes=len(frame), timeout_s=WAIT_S) == frame

    pairs = [(x, y) for x in (a, b, c) for y in (a, b, c) if x is not y]
    answers = await asyncio.gather(*[call(x, y, number) for number in range(15) for x, y in pairs])
    assert answers == [True] * 90


async def test_one_peer_cannot_hold_more_than_its_share_of_streams(network: Network) -> None:
    a, b, c = await network(3)
    b.serve("silent", sleep_forever)
    b.serve("echo", echo)
    held = [await a.open(b.peer_key, "silent", WAIT_S) for _ in range(70)]
    await eventually(lambda: b.refusals == 6)
    assert await ask(c, b.peer_key, "echo", b"x", max_bytes=1, timeout_s=WAIT_S) == b"x"
    for stream in held:
        await stream.close()


async def test_traffic_counts_payload_bytes(network: Network) -> None:
    a, b = await network(2)
    b.serve("echo", echo)
    await ask(a, b.peer_key, "echo", bytes(1234), max_bytes=2000, timeout_s=WAIT_S)
    await ask(a, b.peer_key, "echo", bytes(66), max_bytes=2000, timeout_s=WAIT_S)
    assert (a.traffic.sent, a.traffic.received) == (1300, 1300)
    assert (b.traffic.sent, b.traffic.received) == (1300, 1300)


async def test_a_cancelled_call_leaves_no_task_behind(network: Network) -> None:
    a, b = await network(2)
    b.serve("silent", sleep_forever)
    warm = await a.open(b.peer_key, "silent", WAIT_S)
    await asyncio.sleep(0.1)
    before = len(asyncio.all_tasks())
    call = asyncio.create_task(ask(a, b.peer_key, "silent", b"x", max_bytes=1, timeout_s=WAIT_S))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await warm.close()
    # Besides the cancelled one, the handler on the other side may still sleep: at most that one task is new.
    assert len(asyncio.all_tasks()) <= before + 1


async def test_stop_cancels_handlers_and_is_idempotent(network: Network) -> None:
    a, b = await network(2)
    at_work, cancelled = asyncio.Event(), asyncio.Event()

    async def stubborn(stream: Stream) -> None:
        at_work.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    b.serve("stubborn", stubborn)
    stream = await a.open(b.peer_key, "stubborn", WAIT_S)
    await stream.write(b"x", WAIT_S)
    await asyncio.wait_for(at_work.wait(), WAIT_S)
    began = time.monotonic()
    await b.stop()
    await b.stop()
    assert time.monotonic() - began < 5
    assert cancelled.is_set()
    with pytest.raises(NetworkFault):
        await stream.read(1, WAIT_S)
