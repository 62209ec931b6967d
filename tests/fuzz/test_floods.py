"""A peer that says very much of what is allowed is given up, too."""

from __future__ import annotations

import asyncio

import fuzz_world as world
import pytest
from fuzz_rpc import OWN, SPEC
from fuzz_world import HOSTILE, PLAN, Node, Script

from distributed_training.averaging import scatter
from distributed_training.errors import PeerFault


def test_a_reducer_that_beats_without_end_is_given_up() -> None:
    node, flood = Node(), Script(HOSTILE.peer_key, [b""] * 10_000)
    node.door.next = flood
    with pytest.raises(PeerFault, match="beats without end"):
        world.run(scatter.send_slice(node.peers, HOSTILE, SPEC, PLAN, OWN, 1.0, 5.0))
    assert flood.closed and flood._at < 100


def test_beats_after_the_acknowledgement_are_counted_again() -> None:
    node = Node()
    node.door.next = flood = Script(HOSTILE.peer_key, [b"ok"] + [b""] * 10_000)

    async def deliver() -> bool:
        stream = await scatter.send_slice(node.peers, HOSTILE, SPEC, PLAN, OWN, 1.0, 5.0)
        return await scatter.until_done(stream, 1.0, lambda: 5.0)

    with pytest.raises(PeerFault, match="beats without end"):
        world.run(deliver())
    assert flood.closed and flood._at < 100


def test_the_beats_of_an_honest_reducer_are_heard() -> None:
    class Beating(Script):
        async def read(self, max_bytes: int, timeout_s: float) -> bytes:
            await asyncio.sleep(1.0 / scatter.BEATS_PER_STALL)  # virtual seconds
            return await super().read(max_bytes, timeout_s)

    node, honest = Node(), [b""] * 200
    node.door.next = Beating(HOSTILE.peer_key, [*honest, b"ok", *honest, b"done"])

    async def deliver() -> bool:
        stream = await scatter.send_slice(node.peers, HOSTILE, SPEC, PLAN, OWN, 1.0, 500.0)
        return await scatter.until_done(stream, 1.0, lambda: 500.0)

    assert world.run(deliver())
