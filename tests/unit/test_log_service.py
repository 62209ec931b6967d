"""Logs that candidates push to a validator whose round is broken off and run again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import RUN, group, key, roster

from distributed_training.chain.clock import BlockClock
from distributed_training.errors import NetworkFault, PeerFault
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Signed
from distributed_training.protocol.wire import encode_signed, encode_work
from distributed_training.roles.service import LOG_METHOD, LogService, push_log
from distributed_training.simulation import loop

G = group()
JUDGE = 3  # one of the group takes the logs here


def yes(public_key: bytes, message: bytes, signature: bytes) -> bool:
    return True


def book(switch: MemorySwitch, number: int) -> PeerBook:
    transport = MemoryTransport(switch, key(number, "peer"))
    switch.plug(transport)
    made = PeerBook(transport, 1, key(number), lambda message: bytes(64), yes)
    made.update(roster(*G.plan.roster.neurons))
    return made


def test_a_round_that_is_run_again_keeps_the_logs_that_have_come() -> None:
    async def story() -> None:
        chain: Any = None  # the clock is not run
        switch, clock = MemorySwitch(), BlockClock(chain, 1.0)
        service = LogService(RUN, book(switch, JUDGE), clock, 2)
        senders = {number: book(switch, number) for number in (0, 1)}

        async def push(number: int) -> None:
            signed = encode_signed(Signed(encode_work(G.works[key(number)]), bytes(64)))
            await push_log(senders[number], key(JUDGE, "peer"), G.plan.round.index, signed, b"log", 5.0)

        await service.open_round(G.plan)
        await push(0)
        await service.open_round(G.plan)
        await push(1)
        assert set(service.logs()) == {key(0), key(1)}, "nobody sends its log twice"

    loop.run(story())


def test_another_round_begins_without_logs() -> None:
    async def story() -> None:
        chain: Any = None
        switch = MemorySwitch()
        service = LogService(RUN, book(switch, JUDGE), BlockClock(chain, 1.0), 2)
        await service.open_round(G.plan)
        signed = encode_signed(Signed(encode_work(G.works[key(0)]), bytes(64)))
        await push_log(book(switch, 0), key(JUDGE, "peer"), G.plan.round.index, signed, b"log", 5.0)
        assert service.logs()
        await service.open_round(replace(G.plan, round=RUN.round(4)))
        assert not service.logs()

    loop.run(story())


def test_a_log_is_taken_once_in_its_round_with_its_record_and_no_longer_than_its_claim(tmp_path: Path) -> None:
    async def story() -> None:
        chain: Any = None
        switch = MemorySwitch()
        service = LogService(RUN, book(switch, JUDGE), BlockClock(chain, 1.0), 2, tmp_path)
        sender, work = book(switch, 0), G.works[key(0)]
        signed = encode_signed(Signed(encode_work(work), bytes(64)))
        await service.open_round(G.plan)

        async def push(data: bytes, signed: bytes = signed, index: int = G.plan.round.index) -> bool:
            try:
                await push_log(sender, key(JUDGE, "peer"), index, signed, data, 5.0)
            except (NetworkFault, PeerFault):
                return False
            return True

        most = service.most_bytes(work)
        assert not await push(b"x" * (most + 1)), "longer than its steps"
        assert not await push(b"x", encode_signed(Signed(encode_work(G.works[key(1)]), bytes(64)))), "another's record"
        assert not await push(b"x", index=G.plan.round.index - 1), "a round that is over"
        assert await push(b"x" * most) and not await push(b"y"), "once"
        assert {k: pushed.read() for k, pushed in service.logs().items()} == {key(0): b"x" * most}
        again = LogService(RUN, book(MemorySwitch(), JUDGE), BlockClock(chain, 1.0), 2, tmp_path)
        await again.open_round(G.plan)
        assert {k: pushed.read() for k, pushed in again.logs().items()} == {key(0): b"x" * most}, "after a restart"

    loop.run(story())


def test_a_miner_whose_line_broke_sends_its_log_again_before_its_old_stream_has_ended() -> None:
    async def story() -> None:
        chain: Any = None
        switch = MemorySwitch()
        service = LogService(RUN, book(switch, JUDGE), BlockClock(chain, 1.0), 2)
        await service.open_round(G.plan)
        sender, index = book(switch, 0), G.plan.round.index
        signed = encode_signed(Signed(encode_work(G.works[key(0)]), bytes(64)))
        broken = await sender.open(key(JUDGE, "peer"), LOG_METHOD, index.to_bytes(4, "little"), 5.0)
        await broken.write(signed, 5.0)
        await asyncio.sleep(0.1)
        await push_log(sender, key(JUDGE, "peer"), index, signed, b"log", 1.0)
        with pytest.raises((NetworkFault, PeerFault)):
            await broken.read(2, 1.0)
        assert {k: pushed.read() for k, pushed in service.logs().items()} == {key(0): b"log"}
        assert not service._coming

    loop.run(story())
