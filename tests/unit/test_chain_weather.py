"""Connections that break, nodes that lag, lie, forget or begin anew: the client over a chain node's websocket."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast

import bittensor as bt
import pytest
from bittensor._transport.contract import CallBytes
from stub_chain_node import BLOCK_S, StubNode, client_of, until

from distributed_training.chain.answers import included
from distributed_training.chain.base import Head
from distributed_training.chain.client import BittensorChain
from distributed_training.chain.clock import BlockClock
from distributed_training.chain.heads import Heads
from distributed_training.chain.keys import derive_keypair
from distributed_training.chain.line import Line, Link
from distributed_training.chain.patient import PatientChain
from distributed_training.errors import ChainFault, ChainReplaced, ChainUnreachable, StatePruned

pytestmark = pytest.mark.alone

KEY = derive_keypair(1, "owner")
Make = Callable[..., BittensorChain]


@pytest.fixture
async def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Clients of the endpoints given, closed at the end."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "token_symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
    async with AsyncExitStack() as stack:

        def client(*endpoints: str, **options: Any) -> BittensorChain:
            chain = client_of(tmp_path, *endpoints, **options)
            stack.push_async_callback(chain.close)
            return chain

        yield client


async def reached(chain: BittensorChain, block: int) -> None:
    clock = BlockClock(PatientChain(chain, 0.05), 0.05)
    task = asyncio.create_task(clock.run())
    await clock.reached(block)
    task.cancel()


@pytest.fixture
async def nodes() -> AsyncIterator[Callable[..., Any]]:
    """Chain nodes that are up until the end of the test."""
    async with AsyncExitStack() as stack:

        async def node(head: int = 10, **options: Any) -> StubNode:
            made = await StubNode(head, **options).up()
            stack.push_async_callback(made.down)
            return made

        yield node


async def test_blocks_that_are_pushed_cost_no_request(make: Make, nodes: Any) -> None:
    node = await nodes()
    chain = make(node.url)
    clock = BlockClock(chain, BLOCK_S)
    task = asyncio.create_task(clock.run())
    await until(lambda: node.asked["chain_subscribeFinalizedHeads"])
    await asyncio.sleep(BLOCK_S)
    before = node.asked.total()
    for block in range(11, 17):
        await node.grow(block)
        await asyncio.wait_for(clock.reached(block), BLOCK_S)
        await asyncio.wait_for(clock.final(block - 2), BLOCK_S)
        await asyncio.sleep(BLOCK_S / 2)
    assert node.asked.total() == before, "six blocks, not one request"
    task.cancel()


async def test_a_chain_that_pushes_nothing_is_asked_once_a_block(make: Make, nodes: Any) -> None:
    node = await nodes()
    node.mute = True
    clock = BlockClock(make(node.url), BLOCK_S)
    task = asyncio.create_task(clock.run())
    await asyncio.wait_for(clock.reached(10), 2)
    before = node.asked["chain_getFinalizedHead"]
    await asyncio.sleep(5 * BLOCK_S)
    assert 3 <= node.asked["chain_getFinalizedHead"] - before <= 6
    await node.grow(11)
    await asyncio.wait_for(clock.reached(11), 3 * BLOCK_S)
    task.cancel()


async def test_a_dead_subscription_is_begun_again(make: Make, nodes: Any) -> None:
    node = await nodes()
    chain = make(node.url)
    await chain.head()
    await until(lambda: node.asked["chain_subscribeNewHeads"] == 1)
    await until(lambda: node.asked["chain_subscribeNewHeads"] == 2, timeout_s=10 * BLOCK_S)


async def test_another_endpoint_takes_over(make: Make, nodes: Any) -> None:
    first, second = await nodes(), await nodes(12)
    chain = make(first.url, second.url)
    assert (await chain.head()).number == 10
    await first.down()
    patient = PatientChain(chain, 0.05)
    assert await asyncio.wait_for(patient.block_hash(11), 5) == bytes.fromhex(second.hash_of(11)[2:])
    await until(lambda: second.asked["chain_subscribeNewHeads"] >= 1)
    assert (await patient.head()) == Head(12, 10)


async def test_a_chain_that_nobody_serves_at_the_start_is_waited_for(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    node = StubNode()
    patient = PatientChain(make(node.url), 0.05)
    asking = asyncio.create_task(patient.head())
    await asyncio.sleep(0.3)
    await node.up()
    assert (await asyncio.wait_for(asking, 5)).number == 10
    await node.down()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name.startswith("dist")]
    assert len(warnings) == 1 and node.url in warnings[0] and "asking again" in warnings[0]


async def test_an_outage_leaves_no_trace(make: Make, nodes: Any) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    node = await nodes()
    chain = make(node.url)
    await chain.block_hash(3)
    await node.down()
    await asyncio.sleep(0.6)  # the SDK tries once more, and its task ends with an error
    for _ in range(2):
        with pytest.raises(ChainUnreachable, match=node.url):
            await chain.block_hash(3)
    gc.collect()
    assert said == []
    await node.up()
    assert await chain.block_hash(3)


async def test_two_who_are_the_first_to_ask_follow_one_subscription(make: Make, nodes: Any) -> None:
    node = await nodes()
    chain = make(node.url)
    await asyncio.gather(chain.head(), chain.head())
    await until(lambda: node.asked["chain_subscribeFinalizedHeads"])
    await asyncio.sleep(0.1)
    assert node.asked["chain_subscribeNewHeads"] == 1


async def test_a_node_that_hears_of_no_new_block_gives_way_to_another(nodes: Any) -> None:
    stuck, other = await nodes(), await nodes(30)
    line = Line([stuck.url, other.url])
    heads = Heads(line, 0.02)
    heads.stuck_s = 0.2
    assert (await heads.head()).number == 10
    async with asyncio.timeout(10):
        while (await heads.head()).number < 30:  # noqa: ASYNC110 (the node sends no event)
            await asyncio.sleep(0.05)
    await heads.close()
    await line.close()


async def test_the_close_ends_while_a_connection_is_being_closed(nodes: Any) -> None:
    line = Line([(await nodes()).url])
    heads = Heads(line, BLOCK_S)
    await heads.head()

    async def swallowing() -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    heads._tasks.append(asyncio.create_task(swallowing()))
    await asyncio.sleep(0)
    await asyncio.wait_for(heads.close(), 3)
    await line.close()


async def test_what_the_sdk_cancels_is_an_outage_and_ends_nobody(make: Make, nodes: Any) -> None:
    chain = make((await nodes()).url)

    async def cancelled(_: bt.Client) -> None:
        raise asyncio.CancelledError

    with pytest.raises(ChainUnreachable):
        await chain.ask(cancelled)


async def test_many_who_ask_wait_for_one_try(make: Make) -> None:
    tries = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.05)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        chain = make(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        done = await asyncio.gather(*(chain.block_hash(1) for _ in range(20)), return_exceptions=True)
    assert ({type(one) for one in done}, tries) == ({ChainUnreachable}, 1)


async def test_a_node_that_answers_nothing_does_not_hold_up_the_end(make: Make, nodes: Any) -> None:
    node = await nodes()
    make(node.url)
    line = Line([node.url])
    heads = Heads(line, 12.0)  # of the main network: it may be silent for 30 s
    await heads.head()
    await until(lambda: node.asked["chain_subscribeFinalizedHeads"])
    await asyncio.sleep(0.1)
    node.hangs = True
    async with asyncio.timeout(5):
        await heads.close()
        await line.close()


async def test_a_node_that_asks_for_less_keeps_its_connection(make: Make, nodes: Any) -> None:
    node = await nodes()
    chain = make(node.url)
    await chain.head()
    node.refuses = "chain_getBlockHash"
    for _ in range(3):
        with pytest.raises(ChainUnreachable, match="too many requests"):
            await chain.block_hash(3)
    node.refuses = ""
    assert await chain.block_hash(3) and node.asked["state_getMetadata"] == 1


# --- which chain is it ------------------------------------------------------------------------------


async def test_a_chain_that_began_anew_is_not_believed(make: Make, nodes: Any) -> None:
    node = await nodes(120)
    chain = make(node.url)
    clock = BlockClock(chain, BLOCK_S)
    task = asyncio.create_task(clock.run())
    await asyncio.wait_for(clock.final(118), 2)
    await node.down()
    again = StubNode(1, seed="b", port=node.port)
    await again.up()
    with pytest.raises(ChainReplaced, match=rf"{node.url}.*block 1, final then.*--run-dir") as told:
        await asyncio.wait_for(task, 5)
    assert "\n" not in str(told.value) and (clock.head, clock.finalized) == (120, 118)
    await again.down()


async def test_only_what_the_node_itself_holds_for_final_tells_its_chain(make: Make, nodes: Any) -> None:
    chain: Any = make((await nodes(120)).url)
    await chain.head()
    await chain._look(120)  # final by what another node said
    assert set(chain._line.known) == {1, 118}


async def test_a_fork_on_a_node_that_is_behind_is_no_other_chain(make: Make, nodes: Any) -> None:
    class Forked(StubNode):
        def hash_of(self, number: int) -> str:
            return "0x" + "f" * 62 + "18" if number == 118 else super().hash_of(number)

    first, behind = await nodes(120), await Forked(119).up()
    chain: Any = make(first.url, behind.url)
    assert (await chain.head()).finalized == 118  # there, and not yet on the other one
    await first.down()
    assert await asyncio.wait_for(PatientChain(chain, 0.05).block_hash(100), 5)
    await behind.grow(120)
    await chain._line.broke(chain._line.link)
    with pytest.raises(ChainReplaced):
        await asyncio.wait_for(PatientChain(chain, 0.05).block_hash(100), 5)
    await behind.down()


async def test_a_node_that_is_behind_is_no_other_chain(make: Make, nodes: Any) -> None:
    first, behind = await nodes(120), await nodes(90)
    chain = make(first.url, behind.url)
    assert (await chain.head()) == Head(120, 118)
    await first.down()
    await asyncio.sleep(1.5 * BLOCK_S)
    faults = []
    for _ in range(2):
        try:
            assert (await chain.head()) == Head(120, 118)
        except ChainUnreachable as fault:
            faults.append(str(fault))
        await asyncio.sleep(BLOCK_S)
    with pytest.raises(ChainUnreachable):
        await chain.block_hash(119)
    await behind.grow(121)
    assert (await asyncio.wait_for(PatientChain(chain, 0.05).head(), 5)).number == 121


async def test_a_node_without_the_oldest_headers_is_as_good(make: Make, nodes: Any) -> None:
    node = await nodes(5000, first=4000)
    chain = make(node.url)
    assert (await chain.head()).number == 5000
    with pytest.raises(ChainFault, match="no block at height 3999") as told:
        await chain.block_hash(3999)
    assert not isinstance(told.value, ChainUnreachable), "it will not come"


async def test_the_clock_never_goes_back() -> None:
    heads = [Head(90, 88), Head(91, 89), Head(80, 78), Head(92, 90)]

    class Falling:
        async def head(self) -> Head:
            return heads.pop(0) if len(heads) > 1 else heads[0]

    clock = BlockClock(Falling(), 0.01)  # type: ignore[arg-type]
    task, seen = asyncio.create_task(clock.run()), []
    while clock.head < 92:
        seen.append((clock.head, clock.finalized))
        await asyncio.sleep(0.001)
    assert seen == sorted(seen)
    task.cancel()


async def test_a_runtime_that_is_newer_than_all_we_know_is_said_once(
    make: Make, nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node, told = await nodes(), list[str]()
    chain = make(node.url)
    await chain.head()
    chain.tell_news(told.append)
    assert told == [] and not caplog.records
    node.spec = 482
    await node.down()  # an upgrade may well restart a node; while connected the SDK looks every 12 s
    await node.up()
    await node.grow(200)
    await asyncio.wait_for(PatientChain(chain, 0.05).block_hash(1), 5)
    for head in (320, 440, 560):
        await node.grow(head)
        await asyncio.wait_for(reached(chain, head), 5)
    assert len(told) == 1 and "runtime 482" in told[0]
    assert [r.getMessage() for r in caplog.records if r.name == "distributed_training.chain.client"] == told
    later = list[str]()
    chain.tell_news(later.append)
    assert later == told


# --- writes, signed by the SDK and cut on the wire -----------------------------------------------------


async def submit(link: Link) -> bt.ExtrinsicResult:
    wire = cast(Any, link)._wire  # the stub's runtime has no call, so this one is made by hand
    return await wire.submit(CallBytes(bytes(2), 293), KEY, period=8, wait_for_finalization=False)


async def test_a_write_that_was_cut_or_cancelled_leaves_its_number_to_the_next(nodes: Any, make: Make) -> None:
    node = await nodes()
    make(node.url)
    line = Line([node.url])
    node.cuts = True
    for _ in range(2):
        with pytest.raises(ChainUnreachable, match="in flight"):
            await line.ask(lambda link: included(submit(link), 5))
    node.cuts = False  # it takes the write, and says no more of it
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await line.ask(lambda link: included(submit(link), 5))
    assert node.numbers == [5, 5, 5, 5], "of one number the chain takes one write"
    node.nonce = 6  # one of them is in a block
    with pytest.raises(ChainUnreachable, match="no answer"):
        await line.ask(lambda link: included(submit(link), 0.2))
    assert node.numbers[4:] == [6]
    await line.close()


# --- old blocks --------------------------------------------------------------------------------------


async def test_the_hash_of_an_old_block_needs_no_state(make: Make, nodes: Any) -> None:
    node = await nodes(400, pruned_below=200)
    assert await make(node.url).block_hash(3) == bytes.fromhex(node.hash_of(3)[2:])


async def test_old_state_that_is_gone_is_an_error_of_its_own(make: Make, nodes: Any) -> None:
    node = await nodes(400, pruned_below=200)
    with pytest.raises(StatePruned, match=r"block 100 .*--subtensor\.archive_endpoint") as told:
        await make(node.url).weights(100)
    assert not isinstance(told.value, ChainUnreachable)


async def test_an_archive_that_lies_is_found_out(make: Make, nodes: Any) -> None:
    node, liar = await nodes(400, pruned_below=200), await nodes(400, seed="b")
    with pytest.raises(ChainFault, match=r"archive_endpoint: block 100 there is not") as told:
        await make(node.url, archive=liar.url).weights(100)
    assert not isinstance(told.value, StatePruned)
    honest = await nodes(400)
    with pytest.raises(ChainFault, match="SubtensorModule") as read:  # the stub has no storage: it was asked
        await make(node.url, archive=honest.url).weights(100)
    assert not isinstance(read.value, StatePruned) and honest.asked["chain_getBlockHash"]
