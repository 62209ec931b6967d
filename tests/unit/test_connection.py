"""Connection in the place of asyncio's reader and writer: every byte in order, bounded memory, ends and breaks told."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_training.network.connection import HELD_BYTES, Connection

SIZES = [1, 4, 100, HELD_BYTES - 1, HELD_BYTES, HELD_BYTES + 1, 3 * HELD_BYTES, 1_000_003]
Story = Callable[[Connection, Connection], Awaitable[None]]


async def _streams(early: bytes) -> tuple[Any, Any]:
    """Two ends of a connection, on one of which `early` has come before anybody took it over."""
    one, other = socket.socketpair()
    first, second = await asyncio.open_connection(sock=one), await asyncio.open_connection(sock=other)
    if early:
        first[1].write(early)
        await first[1].drain()
        await asyncio.sleep(0.05)
    return first, second


def run(story: Story, early: bytes = b"") -> None:
    async def main() -> None:
        first, second = await _streams(early)
        ends = Connection(*first), Connection(*second)
        async with asyncio.timeout(30):
            await story(*ends)
        for end in ends:
            end.abort()

    asyncio.run(main())


async def send(end: Connection, data: bytes, cuts: random.Random) -> None:
    at = 0
    while at < len(data):
        size = cuts.choice(SIZES)
        end.write(memoryview(data)[at : at + size])
        await end.drain()
        at += size


@pytest.mark.parametrize("seed", range(6))
def test_every_byte_comes_in_order_both_ways_at_once(seed: int) -> None:
    draw = random.Random(seed)
    there, back = draw.randbytes(4_000_000), draw.randbytes(3_000_000)

    async def read(end: Connection, size: int) -> bytes:
        parts, left = list[bytes](), size
        while left:
            want = min(left, draw.choice(SIZES))
            parts.append(await end.readexactly(want))
            assert isinstance(parts[-1], bytes)
            left -= want
        return b"".join(parts)

    async def story(one: Connection, other: Connection) -> None:
        found = await asyncio.gather(
            send(one, there, random.Random(seed)), send(other, back, random.Random(seed + 1)),
            read(other, len(there)), read(one, len(back)),
        )  # fmt: skip
        assert found[2] == there and found[3] == back

    run(story)


@pytest.mark.parametrize("size", [1, 5000, 300_000])
@pytest.mark.parametrize("more", [0, 5, 200_000])
def test_what_came_before_is_read_first(size: int, more: int) -> None:
    early, rest = random.Random(1).randbytes(min(size, 100_000)), random.Random(2).randbytes(more)

    async def story(one: Connection, other: Connection) -> None:
        sending = asyncio.create_task(send(one, rest, random.Random(3)))
        assert await other.readexactly(len(early) + len(rest)) == early + rest
        await sending

    run(story, early)


def test_nothing_is_taken_that_nobody_asked_for_beyond_a_bound() -> None:
    async def story(one: Connection, other: Connection) -> None:
        sending = asyncio.create_task(send(one, bytes(8_000_000), random.Random(1)))
        await asyncio.sleep(0.3)
        assert not sending.done(), "the writer is held up"
        assert len(other._held) < 2 * HELD_BYTES
        assert await other.readexactly(8_000_000) == bytes(8_000_000)
        await sending

    run(story)


@pytest.mark.parametrize(("sent", "wanted"), [(0, 4), (3, 4), (70_000, 300_000), (10, 300_000)])
def test_the_end_is_told_with_what_came(sent: int, wanted: int) -> None:
    async def story(one: Connection, other: Connection) -> None:
        reading = asyncio.create_task(other.readexactly(wanted))
        await send(one, b"x" * sent, random.Random(1))
        await asyncio.sleep(0.05)
        one.close()
        with pytest.raises(asyncio.IncompleteReadError) as found:
            await reading
        assert (found.value.partial, found.value.expected) == (b"x" * sent, wanted)
        with pytest.raises(asyncio.IncompleteReadError):
            await other.readexactly(1)

    run(story)


def test_what_came_before_the_end_can_be_read_after_it() -> None:
    async def story(one: Connection, other: Connection) -> None:
        await send(one, b"12345678", random.Random(1))
        one.close()
        await asyncio.sleep(0.05)
        assert (await other.readexactly(4), await other.readexactly(4)) == (b"1234", b"5678")

    run(story)


def test_a_closed_connection_sends_what_was_written() -> None:
    async def story(one: Connection, other: Connection) -> None:
        one.write(b"x" * 1_000_000)
        one.close()
        assert await other.readexactly(1_000_000) == b"x" * 1_000_000

    run(story)


def test_a_broken_connection_wakes_who_writes_and_who_reads() -> None:
    async def story(one: Connection, other: Connection) -> None:
        writing = asyncio.create_task(send(one, bytes(8_000_000), random.Random(1)))
        reading = asyncio.create_task(one.readexactly(4))
        await asyncio.sleep(0.1)
        other.abort()
        with pytest.raises(OSError):
            await writing
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await reading
        with pytest.raises(OSError):
            one.write(b"x")
            await one.drain()

    run(story)


def test_a_read_that_is_cancelled_leaves_no_waiting_behind() -> None:
    async def story(one: Connection, other: Connection) -> None:
        for size in (4, 300_000):
            reading = asyncio.create_task(other.readexactly(size))
            await asyncio.sleep(0.02)
            reading.cancel()
            await asyncio.wait({reading})
            assert reading.cancelled()
        one.write(b"late")
        await one.drain()
        await asyncio.sleep(0.02)
        one.abort()
        await asyncio.sleep(0.02)

    run(story)


@pytest.mark.parametrize("size", [4, 25_000])
def test_many_short_reads_take_no_more_from_the_socket_than_they_hand_over(size: int) -> None:
    async def story(one: Connection, other: Connection) -> None:
        sending = asyncio.create_task(send(one, bytes(8_000_000), random.Random(1)))
        await asyncio.sleep(0.1)
        for _ in range(60):
            assert await other.readexactly(size) == bytes(size)
            await asyncio.sleep(0.001)
            assert len(other._held) < 2 * HELD_BYTES
        sending.cancel()

    run(story)
