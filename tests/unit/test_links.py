"""The model of links: what bandwidth, latency, loss, partitions, freezes and crashes do to streams. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed_training.errors import DeadlineMissed, NetworkFault
from distributed_training.network.base import Stream
from distributed_training.network.links import DIAL_TRIPS, LinkProfile, Links
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.simulation.loop import run

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
PLAIN = LinkProfile(up_bytes_s=(1e6, 1e6), down_bytes_s=(4e6, 4e6), latency_s=(0.05, 0.05))
TRIP_S = 0.1  # one way, of PLAIN
LONG_S = 100.0

Story = Callable[[Links, dict[bytes, MemoryTransport]], Awaitable[None]]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(story: Story, profile: LinkProfile = PLAIN, seed: int = 1) -> None:
    async def main() -> None:
        links = Links(seed, profile)
        switch = MemorySwitch(links)
        nodes = {key: MemoryTransport(switch, key) for key in (A, B, C)}
        for node in nodes.values():
            node.serve("echo", echo)
            await node.start()
        await story(links, nodes)
        for node in nodes.values():
            await node.stop()

    run(main())


async def echo(stream: Stream) -> None:
    while True:
        await stream.write(await stream.read(8 << 20, LONG_S), LONG_S)


async def ask(node: MemoryTransport, peer: bytes, data: bytes, timeout_s: float = LONG_S) -> bytes:
    stream = await node.open(peer, "echo", timeout_s)
    try:
        await stream.write(data, timeout_s)
        return await stream.read(len(data), timeout_s)
    finally:
        await stream.close()


def test_a_small_question_takes_the_round_trips() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        assert await ask(nodes[A], B, b"x") == b"x"
        assert now() == pytest.approx(2 * TRIP_S * DIAL_TRIPS + 2 * TRIP_S, rel=1e-3)

    play(story)


def test_a_big_one_takes_the_bandwidth_of_the_slower_side_each_way() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        data = bytes(3_000_000)
        assert await ask(nodes[A], B, data) == data
        assert now() == pytest.approx(2 * 3.0 + 0.5, rel=0.05)  # 1 MB/s up on both sides

    play(story)


def test_an_uplink_is_shared_and_a_downlink_too() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        async def send(source: bytes, target: bytes) -> None:
            stream = await nodes[source].open(target, "echo", LONG_S)
            await stream.write(bytes(1_000_000), LONG_S)
            assert len(await stream.read(1_000_000, LONG_S)) == 1_000_000
            await stream.close()

        began = now()
        await asyncio.gather(send(A, B), send(A, C))
        assert now() - began == pytest.approx(2.0 + 1.0 + 0.5, rel=0.1)  # two up from A, one back from each

    play(story)
    slow_down = LinkProfile(up_bytes_s=(4e6, 4e6), down_bytes_s=(1e6, 1e6), latency_s=(0.05, 0.05))

    async def into_one(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        received: list[float] = []

        async def sink(stream: Stream) -> None:
            await stream.read(1_000_000, LONG_S)
            received.append(now())

        nodes[C].serve("sink", sink)
        for source in (A, B):
            stream = await nodes[source].open(C, "sink", LONG_S)
            await stream.write(bytes(1_000_000), LONG_S)
        await asyncio.sleep(LONG_S)
        assert max(received) == pytest.approx(2.0, rel=0.4)

    play(into_one, slow_down)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=60_000), max_size=12), st.integers(0, 50), st.sampled_from([0.0, 0.05, 0.4]))
def test_frames_arrive_whole_and_in_order_whatever_is_lost(frames: list[bytes], seed: int, loss: float) -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        stream = await nodes[A].open(B, "echo", LONG_S)

        async def write() -> None:
            for frame in frames:
                await stream.write(frame, LONG_S)

        writing = asyncio.create_task(write())
        assert [await stream.read(60_000, LONG_S) for _ in frames] == frames
        await writing
        await stream.close()
        assert nodes[A].traffic.frames_sent == len(frames)

    play(story, LinkProfile(loss=loss), seed)


def test_a_partition_holds_bytes_back_and_lets_openings_time_out_until_it_heals() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        stream = await nodes[A].open(B, "echo", LONG_S)
        links.partition([B])
        await stream.write(b"x", LONG_S)
        began = now()
        with pytest.raises(DeadlineMissed):
            await nodes[A].open(B, "echo", 5.0)
        assert now() - began == pytest.approx(5.0)
        assert await ask(nodes[A], C, b"y") == b"y"
        healing = asyncio.get_running_loop().call_later(20.0, links.heal)
        assert await stream.read(1, LONG_S) == b"x"
        assert now() >= healing.when()
        assert await ask(nodes[A], B, b"z") == b"z"

    play(story)


def test_a_frozen_peer_keeps_its_streams_and_stops_its_writers() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        stream = await nodes[A].open(B, "echo", LONG_S)
        links.freeze(B)
        await stream.write(b"x", LONG_S)
        with pytest.raises(DeadlineMissed):
            await stream.read(1, 3.0)
        other = asyncio.create_task(ask(nodes[A], B, bytes(5_000_000), 10.0))
        with pytest.raises(DeadlineMissed):
            await other
        links.thaw(B)
        assert await ask(nodes[A], B, b"again") == b"again"

    play(story)


def test_a_crash_breaks_every_stream_a_latency_later() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        streams = [await nodes[key].open(B, "echo", LONG_S) for key in (A, C)]
        between = await nodes[A].open(C, "echo", LONG_S)
        began = now()
        links.crash(B)
        for stream in streams:
            with pytest.raises(NetworkFault):
                await stream.read(1, LONG_S)
        assert now() - began == pytest.approx(TRIP_S)
        await between.write(b"x", LONG_S)
        assert await between.read(1, LONG_S) == b"x"

    play(story)


def test_a_broken_connection_is_a_network_fault_and_the_next_may_hold() -> None:
    async def story(links: Links, nodes: dict[bytes, MemoryTransport]) -> None:
        outcomes: list[bool] = []
        for _ in range(60):
            try:
                outcomes.append(await ask(nodes[A], B, b"x") == b"x")
            except NetworkFault:
                outcomes.append(False)
        assert 5 < outcomes.count(False) < 50

    play(story, LinkProfile(breaks=0.1))


def test_links_are_a_function_of_seed_and_key() -> None:
    one, same, other = Links(1, LinkProfile()), Links(1, LinkProfile()), Links(2, LinkProfile())
    assert one.nic(A).up_bytes_s != one.nic(B).up_bytes_s
    same.nic(B)
    assert same.nic(A) == one.nic(A) and other.nic(A) != one.nic(A)
    assert one.latency(A, B) == one.latency(B, A)
