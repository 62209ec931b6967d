"""Chunks that come while others are checked: order, errors, room, cancelling. On a virtual clock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distributed_training.averaging.checking import WAITING, Checking
from distributed_training.errors import NetworkFault, PeerFault, WireError
from distributed_training.simulation import loop

BAD = b"bad"


def check(chunk: int, data: bytes) -> Any:
    if data == BAD:
        raise WireError(f"chunk {chunk} is bad")
    return data


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await story()
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, "no task is left behind"

    loop.run(main())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 40])
@pytest.mark.parametrize("pause_s", [0.0, 0.1])
def test_everything_is_taken_in_order(count: int, pause_s: float) -> None:
    taken = list[tuple[int, Any]]()

    async def story() -> None:
        async with Checking(check, lambda chunk, parsed: taken.append((chunk, parsed))) as checking:
            for chunk in range(count):
                await asyncio.sleep(pause_s)
                await checking.put(chunk, bytes([chunk]))

    run(story)
    assert taken == [(chunk, bytes([chunk])) for chunk in range(count)]


@pytest.mark.parametrize("bad", [0, 1, 4, 9])
def test_what_came_before_a_bad_chunk_is_taken_and_nothing_after_it(bad: int) -> None:
    taken = list[int]()

    async def story() -> None:
        with pytest.raises(WireError, match=f"chunk {bad} is bad"):
            async with Checking(check, lambda chunk, _: taken.append(chunk)) as checking:
                for chunk in range(10):
                    await checking.put(chunk, BAD if chunk == bad else b"good")

    run(story)
    assert taken == list(range(bad))


def test_what_came_before_the_stream_broke_is_taken_and_the_break_is_told() -> None:
    taken = list[int]()

    async def story() -> None:
        with pytest.raises(NetworkFault):
            async with Checking(check, lambda chunk, _: taken.append(chunk)) as checking:
                await checking.put(0, b"good")
                await checking.put(1, b"good")
                raise NetworkFault("broken")

    run(story)
    assert taken == [0, 1]


def test_who_may_take_no_more_says_so_to_the_reader() -> None:
    def late(chunk: int, parsed: Any) -> None:
        raise PeerFault("too late")

    async def story() -> None:
        with pytest.raises(PeerFault, match="too late"):
            async with Checking(check, late) as checking:
                for chunk in range(10):
                    await checking.put(chunk, b"good")

    run(story)


def test_no_more_than_two_batches_are_in_memory() -> None:
    """Real threads: the check stands still, and the reader is held up."""

    async def story() -> None:
        go, came = threading.Event(), list[int]()

        def slow(chunk: int, data: bytes) -> Any:
            go.wait(10)
            return data

        async def read() -> None:
            async with Checking(slow, lambda chunk, _: None) as checking:
                for chunk in range(100):
                    came.append(chunk)
                    await checking.put(chunk, b"good")

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.2)
        assert len(came) <= 2 * WAITING + 1
        go.set()
        await reading
        assert len(came) == 100

    asyncio.run(story())


def test_cancelled_it_leaves_nothing_behind() -> None:
    async def story() -> None:
        async def read() -> None:
            async with Checking(check, lambda chunk, _: None) as checking:
                await checking.put(0, b"good")
                await asyncio.sleep(100)

        reading = asyncio.create_task(read())
        await asyncio.sleep(1)
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()

    run(story)
