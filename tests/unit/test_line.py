"""One direction of a node's line under a cap: who goes first, how much, and what it measures. On a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from distributed_training.errors import DeadlineMissed
from distributed_training.network.base import Traffic
from distributed_training.network.frames import FrameStream
from distributed_training.network.line import BURST_S, LOWER, OVERHEAD, SMALL_BYTES, Lane, Rank, Rate, ranked
from distributed_training.network.memory import Pipe
from distributed_training.simulation.loop import run

RATE = 1e6  # bytes/s


def now() -> float:
    return asyncio.get_running_loop().time()


def on_lane(work: Callable[[Lane], Awaitable[None]]) -> float:
    """Virtual seconds that it takes on a lane whose burst is used up."""

    async def scene() -> float:
        lane = Lane()
        lane.limit(RATE)
        lane.pay(int(RATE * BURST_S / OVERHEAD))
        began = now()
        await work(lane)
        return now() - began

    return run(scene())


async def send(lane: Lane, rank: Rank, size: int, ended: dict[str, float], name: str) -> None:
    with ranked(rank):
        while size > 0:
            part = min(lane.part, size)
            await lane.turn(part)
            size -= part
    ended[name] = now()


def test_all_streams_together_keep_to_the_cap() -> None:
    async def work(lane: Lane) -> None:
        await asyncio.gather(*(send(lane, rank, 1_000_000, {}, "") for rank in Rank for _ in range(3)))

    assert on_lane(work) == pytest.approx(9 * OVERHEAD, rel=0.02)


def test_our_own_chunks_go_before_what_a_round_waits_for_and_that_before_leisure() -> None:
    ended: dict[str, float] = {}

    async def work(lane: Lane) -> None:
        await asyncio.gather(
            send(lane, Rank.LEISURE, 1_000_000, ended, "leisure"),
            send(lane, Rank.ROUND, 1_000_000, ended, "round"),
            send(lane, Rank.OWN, 1_000_000, ended, "own"),
        )

    assert on_lane(work) == pytest.approx(3 * OVERHEAD, rel=0.03)
    began = ended["leisure"] - 3 * OVERHEAD
    own, rest = ended["own"] - began, ended["round"] - began
    assert own < OVERHEAD * (1 + 2.5 / (LOWER - 1)), "each lower rank passes a seventh beside it"
    assert own < rest < ended["leisure"] - began


def test_a_lower_rank_does_not_starve() -> None:
    """A hundred megabytes of ours before it, and it has its share of the line."""
    ended: dict[str, float] = {}

    async def work(lane: Lane) -> None:
        ours = asyncio.create_task(send(lane, Rank.OWN, 100_000_000, {}, ""))
        await asyncio.sleep(1)
        await send(lane, Rank.LEISURE, 1_000_000, ended, "leisure")
        ours.cancel()

    assert on_lane(work) - 1 == pytest.approx(LOWER * OVERHEAD, rel=0.1)


def test_streams_of_one_rank_share_alike_and_small_frames_pass_at_once() -> None:
    ended: dict[str, float] = {}

    async def work(lane: Lane) -> None:
        long = [asyncio.create_task(send(lane, Rank.ROUND, 10_000_000, {}, "")) for _ in range(3)]
        await send(lane, Rank.ROUND, 1_000_000, ended, "short")
        began = now()
        lane.pay(SMALL_BYTES)
        assert now() == began
        for task in long:
            task.cancel()

    assert on_lane(work) == pytest.approx(4 * OVERHEAD, rel=0.15)


def test_who_goes_away_while_it_waits_leaves_its_turn_to_others() -> None:
    async def work(lane: Lane) -> None:
        gone = [asyncio.create_task(send(lane, Rank.OWN, 1_000_000, {}, "")) for _ in range(20)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await send(lane, Rank.LEISURE, 1_000_000, {}, "")

    assert on_lane(work) == pytest.approx(OVERHEAD, rel=0.25)


def pair(up: float | None = None, down: float | None = None) -> tuple[FrameStream, FrameStream, Traffic]:
    """A writer and a reader over a pipe; the caps are the writer's own, the reader's own."""

    class End:
        def __init__(self, pipe: Pipe) -> None:
            self.write, self.drain, self.close = pipe.write, pipe.drain, pipe.close

    pipe, sender, receiver = Pipe(), Traffic(), Traffic()
    sender.line.limit(up, None)
    receiver.line.limit(None, down)
    end = End(pipe)
    return (
        FrameStream(bytes(32), pipe.reader, end, end.close, sender),
        FrameStream(bytes(32), pipe.reader, end, end.close, receiver),
        sender,
    )


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_stream_under_a_cap_keeps_to_it_and_its_deadlines_are_for_the_peer(direction: str) -> None:
    """Ten frames of a megabyte, of which each has a tenth of a second: the cap's own waiting is not the peer's."""

    async def scene() -> float:
        writer, reader, _ = pair(**{direction: RATE})
        began = now()

        async def out() -> None:
            for _ in range(10):
                await writer.write(bytes(1_000_000), 0.1 if direction == "up" else 60)

        sending = asyncio.create_task(out())
        for _ in range(10):
            assert len(await reader.read(1_000_000, 60 if direction == "up" else 0.1)) == 1_000_000
        await sending
        return now() - began

    assert run(scene()) == pytest.approx(10 * OVERHEAD, rel=0.05)


@pytest.mark.parametrize("cap", [None, RATE])
def test_a_peer_that_takes_nothing_is_still_found_out(cap: float | None) -> None:
    async def scene() -> None:
        writer, _, _ = pair(up=cap)
        with pytest.raises(DeadlineMissed):
            await writer.write(bytes(10_000_000), 1.0)
        assert now() < 5

    run(scene())


def test_the_rate_is_what_moved_while_something_moved() -> None:
    """Two streams at a time, pauses between, and now and then a peer that is slow."""

    async def scene() -> tuple[float | None, float | None]:
        rate = Rate()

        async def frame(size: int, seconds: float) -> None:
            with rate.moving(size):
                await asyncio.sleep(seconds)

        await frame(100, 50.0)
        before = rate.bytes_per_s
        for turn in range(40):
            await asyncio.gather(frame(1 << 20, 0.6), frame(1 << 20, 0.6))
            await asyncio.sleep(10)
            if turn % 4 == 0:
                await frame(1 << 20, 20)
        return before, rate.bytes_per_s

    before, after = run(scene())
    assert before is None and after == pytest.approx((2 << 20) / 0.6)


def test_who_breaks_off_adds_its_time_and_no_bytes() -> None:
    async def scene() -> float | None:
        rate = Rate()
        with pytest.raises(OSError), rate.moving(1 << 30):
            await asyncio.sleep(1)
            raise OSError
        with rate.moving(2 << 20):
            await asyncio.sleep(1)
        return rate.bytes_per_s

    assert run(scene()) == pytest.approx(1 << 20)


def test_who_announces_frames_and_sends_none_takes_nothing_of_the_line() -> None:
    async def scene() -> float:
        receiver, pipes = Traffic(), [Pipe() for _ in range(65)]
        receiver.line.limit(None, RATE)
        readers = [FrameStream(bytes(32), pipe.reader, pipe, pipe.close, receiver) for pipe in pipes]
        for pipe in pipes:
            pipe.write((100_000).to_bytes(4, "big"))
        liars = [asyncio.create_task(reader.read(100_000, 60)) for reader in readers[1:]]
        await asyncio.sleep(0.1)
        pipes[0].write(bytes(100_000))
        began = now()
        await readers[0].read(100_000, 60)
        for liar in liars:
            liar.cancel()
        await asyncio.gather(*liars, return_exceptions=True)
        return now() - began

    assert run(scene()) < 0.2
