"""A peer that says very much of what is allowed is given up, too."""

from __future__ import annotations

import asyncio

import fuzz_world as world
import pytest
from fuzz_rpc import KNOWN, OWN, SCATTER, SIGNED, SPEC, cut, pack
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


class Hanging(Script):
    """Says its frames, and then nothing more, as who announces a frame and sends none of it. reading: bytes of the
    frame that is waited for at most: so many may lie here for it."""

    reading = 0

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        if self._at >= len(self._frames):
            self.reading = max_bytes
            try:
                await asyncio.sleep(1000.0)
            finally:
                self.reading = 0
        return await super().read(max_bytes, timeout_s)


def test_of_many_streams_with_one_slice_only_the_newest_is_read() -> None:
    """Each would hold chunks that wait for their checks, and the memory of the frame that it announces: of one sender
    and slice there is one at a time."""
    node = Node()
    node.open_reduction()
    frames = cut(pack(KNOWN | SIGNED, SCATTER))[1][:-1]
    streams = [Hanging(HOSTILE.peer_key, frames) for _ in range(64)]

    async def flood() -> tuple[list[bool], list[str]]:
        tasks = list[asyncio.Task[None]]()
        for stream in streams:
            tasks.append(asyncio.ensure_future(node.door.handlers[scatter.METHOD](stream)))
            await asyncio.sleep(0.001)
        over = [task.done() for task in tasks]
        ends = [str(task.exception()) for task in tasks if task.done()]
        assert sum(stream.reading for stream in streams) == PLAN.uplink.chunk_bytes(PLAN.layout, SPEC.last_chunk - 1)
        tasks[-1].cancel()
        await asyncio.wait(tasks)
        return over, ends

    over, ends = world.run(flood())
    assert over == [True] * 63 + [False] and set(ends) == {"the same comes on another stream"}
    assert len(node.butterfly._coming) == 0
