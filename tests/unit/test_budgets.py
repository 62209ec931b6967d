"""Peers that ask for too much are refused early and counted; nobody else waits, and strangers share one budget."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from samples import RUN

from distributed_training.averaging.budget import peer_budget
from distributed_training.averaging.codecs.base import wire_bytes
from distributed_training.averaging.codecs.int8 import INT8
from distributed_training.averaging.plan import layout_of
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.base import Stream
from distributed_training.network.budgets import LINES, STRANGERS, Account, Accounts, Bucket, Budget
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.serving import MAX_REASON_CHARS, Serving, printable

AMPLE = Budget(streams=1000, streams_per_s=1000, bytes=1 << 30, bytes_per_s=1 << 30)
SLOW = 1e-6  # refills nothing while a test runs


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@asynccontextmanager
async def network(*numbers: int) -> AsyncIterator[tuple[MemoryTransport, ...]]:
    """Transports with these peer keys; the first serves `echo`."""
    switch = MemorySwitch()
    transports = tuple(MemoryTransport(switch, key(n)) for n in numbers)

    async def echo(stream: Stream) -> None:
        await stream.write(await stream.read(1 << 20, 2.0), 2.0)

    transports[0].serve("echo", echo)
    for transport in transports:
        await transport.start()
    try:
        yield transports
    finally:
        for transport in transports:
            await transport.stop()


async def served(asker: MemoryTransport, target: MemoryTransport, size: int = 1) -> bool:
    stream = await asker.open(target.peer_key, "echo", 1.0)
    try:
        await stream.write(bytes(size), 1.0)
        return len(await stream.read(1 << 20, 1.0)) == size
    except NetworkFault:
        return False
    finally:
        await stream.close()


async def test_a_peer_over_its_streams_is_refused_and_nobody_else() -> None:
    async with network(1, 2, 3) as (node, greedy, honest):
        node.admit([key(2), key(3)], replace(AMPLE, streams=3, streams_per_s=SLOW))
        assert [await served(greedy, node) for _ in range(6)] == [True] * 3 + [False] * 3
        assert node.refusals == 3
        assert await served(honest, node)


async def test_bytes_of_both_directions_are_paid_before_they_are_read_or_sent() -> None:
    async with network(1, 2, 3) as (node, greedy, honest):
        node.admit([key(2), key(3)], replace(AMPLE, bytes=2500, bytes_per_s=SLOW))
        before = node.traffic.received
        assert not await served(greedy, node, 5000), "announced, and refused"
        assert node.traffic.received == before
        assert await served(greedy, node, 1000)
        assert not await served(greedy, node, 1000), "there and back is 2008 of the 2500"
        assert node.refusals == 2 and await served(honest, node, 1000)


async def test_strangers_share_one_budget_and_leave_the_roster_alone() -> None:
    async with network(1, 2, 3, 4) as (node, one, another, honest):
        node.admit([key(4)], AMPLE)
        for _ in range(int(STRANGERS.streams)):
            node._serving._accounts.of(key(99)).streams.take(1)  # type: ignore[union-attr]
        results = [await served(one, node), await served(another, node)]
        assert results.count(False) == 2 and await served(honest, node)


async def test_budgets_refill_with_the_loops_clock() -> None:
    bucket = Bucket(burst=5, per_s=100)
    assert bucket.take(5) and not bucket.take(1)
    await asyncio.sleep(0.03)
    assert bucket.take(1) and not bucket.take(4.5)
    await asyncio.sleep(0.1)
    assert not bucket.take(5.5) and bucket.take(5), "never more than the burst"


async def test_nobody_is_limited_before_the_first_roster() -> None:
    async with network(1, 2) as (node, peer):
        assert all([await served(peer, node) for _ in range(20)])
        assert not Accounts().limited and Accounts().of(key(2)) is None


async def test_a_new_roster_keeps_what_was_used_and_forgets_who_left() -> None:
    accounts = Accounts()
    accounts.admit([key(1), key(2)], AMPLE)
    first = accounts.of(key(1))
    accounts.admit([key(1), key(3)], AMPLE)
    assert accounts.of(key(1)) is first
    strangers = accounts.of(key(2))
    assert isinstance(strangers, Account) and strangers is accounts.of(key(77)) and strangers.budget == STRANGERS


async def test_made_up_keys_take_no_memory() -> None:
    accounts = Accounts()
    accounts.admit([key(n) for n in range(4)], AMPLE)
    for n in range(10_000):
        account = accounts.of(key(n))
        assert account is not None
        account.streams.take(1)
    assert len(accounts._named) == 4


async def test_refusals_fill_a_bounded_number_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    serving = Serving()
    serving.admit([key(1)], AMPLE)
    for n in range(10 * LINES):
        serving.refuse(key(1000 + n), "made up")
    assert serving.refusals == 10 * LINES and len(caplog.records) <= LINES + 1
    serving.refuse(key(1), "of the roster")
    assert "of the roster" in caplog.records[-1].getMessage(), "strangers use up none of its lines"


def test_what_is_logged_is_one_short_printable_line() -> None:
    hostile = "a\nb\x1b[31m\x00\u202e\u2028" + "x" * 1000
    shown = printable(hostile)
    assert shown.isprintable() and len(shown) <= MAX_REASON_CHARS + 3 and shown.startswith("a?b?[31m???")


@pytest.mark.parametrize("num_coords", [404, 900_000, 124_000_000])
async def test_an_honest_round_stays_far_below_the_budget(num_coords: int) -> None:
    budget, layout = peer_budget(RUN, num_coords, 12.0), layout_of(RUN, num_coords)
    account = Account(budget)
    slices = min(RUN.max_uids, RUN.average.max_reducers, layout.num_chunks)
    for _ in range(slices + 5):  # one stream for each slice, scatter, log, probes, snapshot
        assert account.streams.take(1)
    honest = 2 * wire_bytes(INT8, layout) + 36 * layout.num_chunks + 8 * num_coords
    assert all(account.bytes.take(honest) for _ in range(2)), "even twice in one round"
    largest = max(wire_bytes(INT8, layout), 1 << 20)
    assert Account(budget).bytes.take(largest), "no frame is larger than the burst"


async def test_with_overlap_a_round_needs_a_whole_vector_more() -> None:
    """What its voters replay begins at the miner's vector of the round before, beside the chunks that they probe."""
    onward = RUN.model_copy(update={"timing": RUN.timing.model_copy(update={"overlap": True})})
    layout = layout_of(RUN, 124_000_000)
    with_it, without = (peer_budget(run, layout.num_coords, 12.0) for run in (onward, RUN))
    vector = wire_bytes(INT8, layout) + 32 * layout.num_chunks
    assert with_it.bytes - without.bytes >= vector
    assert (with_it.bytes_per_s - without.bytes_per_s) * RUN.timing.length * 12.0 >= vector


async def test_over_budget_is_the_peers_fault() -> None:
    async with network(1, 2) as (node, peer):
        seen: list[Exception] = []

        async def handler(stream: Stream) -> None:
            try:
                await stream.read(1 << 20, 1.0)
            except PeerFault as fault:
                seen.append(fault)
                raise

        node.serve("other", handler)
        node.admit([key(2)], replace(AMPLE, bytes=10, bytes_per_s=SLOW))
        stream = await peer.open(key(1), "other", 1.0)
        await stream.write(bytes(100), 1.0)
        with pytest.raises(NetworkFault):
            await stream.read(1, 1.0)
        assert node.refusals == 1 and "budget" in str(seen[0])
