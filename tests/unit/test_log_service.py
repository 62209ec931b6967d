"""Logs that candidates push to a validator whose round is broken off and run again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from samples import RUN, group, key, roster

from distributed_training.chain.clock import BlockClock
from distributed_training.network.memory import MemorySwitch, MemoryTransport
from distributed_training.network.peers import PeerBook
from distributed_training.protocol.types import Signed
from distributed_training.protocol.wire import encode_signed, encode_work
from distributed_training.roles.service import LogService, push_log
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
