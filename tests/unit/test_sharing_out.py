"""Places, the line and repeats: what a node gives to its peers is shared out, and nobody takes it all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from distributed_training.errors import PeerFault
from distributed_training.network.budgets import THINGS_OF_A_PEER, Repeats
from distributed_training.network.places import TURN_S, Places
from distributed_training.network.uplink import BURST_BYTES, YIELD, Uplink
from distributed_training.simulation.loop import run

Log = list[tuple[float, str]]


def now() -> float:
    return asyncio.get_running_loop().time()


async def stays(places: Places, who: str, seconds: float, log: Log) -> None:
    """Holds a place for so long, or until it has to go; a refusal is logged as `no NAME`."""
    try:
        async with places.place(who.encode()) as free:
            log.append((round(now()), who if free else f"no {who}"))
            await asyncio.sleep(seconds if free else 0)
    except PeerFault:
        log.append((round(now()), f"{who} goes"))


async def come(places: Places, log: Log, *visits: tuple[float, str, float]) -> None:
    """(at, who, for how long)."""

    async def visit(at: float, who: str, seconds: float) -> None:
        await asyncio.sleep(at)
        await stays(places, who, seconds, log)

    await asyncio.gather(*(visit(*v) for v in visits))


def visits(total: int, *those: tuple[float, str, float]) -> Log:
    log: Log = []
    run(come(Places(total, 2), log, *those))
    return log


def test_who_holds_a_place_too_long_gives_it_to_who_waits() -> None:
    log = visits(2, (0, "a", 999), (0, "b", 999), (5, "early", 1), (TURN_S + 1, "c", 1))
    assert log[:5] == [(0, "a"), (0, "b"), (5, "no early"), (11, "c"), (11, "a goes")]


def test_nobody_goes_while_nobody_waits() -> None:
    assert visits(2, (0, "a", 999), (0, "b", 999)) == [(0, "a"), (0, "b")]


def test_who_comes_again_and_again_gets_no_more_time_than_others() -> None:
    """`a` comes back as soon as it has gone; what it held counts, so `b` keeps what it has for a turn more."""
    log = visits(1, (0, "a", 999), (20, "b", 999), (21, "a", 999), (39, "a", 999), (51, "a", 999))
    assert log == [(0, "a"), (20, "b"), (20, "a goes"), (21, "no a"), (39, "no a"), (51, "a"), (51, "b goes")]


def test_a_peer_that_was_cut_off_gets_the_place_of_its_own_old_stream() -> None:
    log = visits(8, (0, "a", 999), (0, "a", 999), (1, "a", 999), (TURN_S + 1, "a", 999))
    assert log == [(0, "a"), (0, "a"), (1, "no a"), (11, "a"), (11, "a goes")]


def test_a_slow_honest_fetch_ends_among_many_that_hold_places() -> None:
    """16 peers that never leave on their own, and one that needs 60 s in all: it has them after some of its turns."""

    async def scene() -> float:
        places, had = Places(8, 2), 0.0

        async def greedy(who: str) -> None:
            while True:
                await stays(places, who, 999, [])
                await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(greedy(f"g{n}")) for n in range(16)]
        while had < 59.9:
            began = now()
            with suppress(PeerFault):
                async with places.place(b"honest") as free:
                    began = now()
                    await asyncio.sleep(60 - had if free else 0)
            had += now() - began
            await asyncio.sleep(12)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return now()

    assert run(scene()) < 200


def timed(work: Callable[[Uplink], Awaitable[None]]) -> float:
    """Virtual seconds that it takes on a line of 1000 B/s, with nothing left of the burst."""

    async def scene() -> float:
        line = Uplink()
        line.limit(1000.0)
        await line.turn(BURST_BYTES)
        began = now()
        await work(line)
        return now() - began

    return run(scene())


def test_all_peers_together_take_their_part_of_the_line_and_no_more() -> None:
    async def many(line: Uplink) -> None:
        await asyncio.gather(*(line.turn(500) for _ in range(20)))

    assert timed(many) == pytest.approx(10.0)


def test_each_stream_has_one_frame_in_turn() -> None:
    ended: dict[str, float] = {}

    async def stream(line: Uplink, who: str, frames: int) -> None:
        for _ in range(frames):
            await line.turn(1000)
        ended[who] = now()

    async def both(line: Uplink) -> None:
        await asyncio.gather(*(stream(line, f"greedy {n}", 50) for n in range(4)), stream(line, "modest", 3))

    assert timed(both) > 200 and ended["modest"] == pytest.approx(15.0, abs=1.0)


def test_what_an_audit_asks_for_does_not_wait_behind_who_joins() -> None:
    """Who is not done in time has no pay for the round, and anybody on the roster may fetch a snapshot meanwhile."""

    async def beside(line: Uplink) -> None:
        await line.turn(BURST_BYTES, audits=True)
        snapshots = [asyncio.create_task(line.turn(1 << 30)) for _ in range(8)]
        began = now()
        for _ in range(16):
            await line.turn(1 << 16, audits=True)
        assert now() - began == pytest.approx((1 << 20) / 1000.0, rel=0.1)
        with line.ours():
            began = now()
            await line.turn(1 << 16, audits=True)
            assert now() - began == pytest.approx(YIELD * (1 << 16) / 1000.0, rel=0.1), "our own round comes first"
        for task in snapshots:
            task.cancel()
        await asyncio.gather(*snapshots, return_exceptions=True)

    timed(beside)


def test_a_slice_in_small_pieces_gets_as_much_of_the_line_as_snapshots_in_large_ones() -> None:
    """By frames it would take sixteen times as long: longer than whoever asks for it waits."""

    async def beside(line: Uplink) -> None:
        async def snapshot() -> None:
            while True:
                await line.turn(1 << 20)

        snapshots = [asyncio.create_task(snapshot()) for _ in range(8)]
        for _ in range(16):
            await line.turn(1 << 16)
        for task in snapshots:
            task.cancel()
        await asyncio.gather(*snapshots, return_exceptions=True)

    assert timed(beside) == pytest.approx(9 * (1 << 20) / 1000.0, rel=0.1)


def test_our_own_round_goes_first() -> None:
    async def beside(line: Uplink) -> None:
        with line.ours():
            await line.turn(1000)

    assert timed(beside) == pytest.approx(YIELD)


def test_the_same_thing_is_given_a_few_times_and_not_again_for_an_hour() -> None:
    async def scene() -> None:
        repeats = Repeats(3, 3600.0)
        assert [repeats.take(b"a", "slice 1") for _ in range(3)] == [0, 1, 2]
        for thing, who in (("slice 1", b"b"), ("slice 2", b"a")):
            assert repeats.take(who, thing) == 0, "another peer, another thing"
        with pytest.raises(PeerFault, match="3 times"):
            repeats.take(b"a", "slice 1")
        await asyncio.sleep(3601)
        assert repeats.take(b"a", "slice 1") == 0

    run(scene())


def test_what_is_remembered_of_a_peer_is_bounded() -> None:
    async def scene() -> int:
        repeats = Repeats()
        for thing in range(2 * THINGS_OF_A_PEER):
            repeats.take(b"a", thing)
        return len(repeats._given[b"a"])

    assert run(scene()) == THINGS_OF_A_PEER
