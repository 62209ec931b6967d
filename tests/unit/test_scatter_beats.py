"""How long a sender waits for a reducer that has all of its bytes under way: while chunks come, but not into the last
stall time, which is the backup's."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from samples import group

from distributed_training.averaging.butterfly import OwnWork
from distributed_training.averaging.scatter import send_slice
from distributed_training.errors import NetworkFault
from distributed_training.network.peers import PeerBook
from distributed_training.network.uplink import Uplink
from distributed_training.simulation.loop import run

G = group(2)
SPEC = G.plan.slices[0]
STALL_S, LEFT_S = 4.0, 20.0
BEAT, ACK = b"", b"ok"


class Reducer:
    """The other end, and the book that opens a stream to it: takes everything at once, beats each second."""

    def __init__(self, beats: int) -> None:
        """beats: before it says ACK."""
        self.said, self.uplink, self.closed = [BEAT] * beats + [ACK], Uplink(), False

    async def open(self, peer_key: bytes, method: str, payload: bytes, timeout_s: float) -> Reducer:
        return self

    async def write(self, frame: bytes, timeout_s: float) -> None: ...

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        await asyncio.sleep(1.0)
        return self.said.pop(0)

    async def close(self) -> None:
        self.closed = True


def send(reducer: Reducer, left_s: float) -> float:
    """Seconds until the reducer had taken all."""
    target = G.plan.candidates[0]
    own = OwnWork(G.made[target.public_key], b"signed")

    async def story() -> float:
        await send_slice(cast(PeerBook, reducer), target, SPEC, G.plan, own, STALL_S, left_s)
        return asyncio.get_running_loop().time()

    return run(story())


def test_a_sender_waits_for_longer_than_a_stall_time_while_it_hears_beats() -> None:
    reducer = Reducer(beats=10)
    assert send(reducer, LEFT_S) == pytest.approx(11.0) and not reducer.closed


def test_the_last_stall_time_is_the_backups() -> None:
    reducer = Reducer(beats=100)
    with pytest.raises(NetworkFault, match=r"acknowledgement: not done within 16.0 s"):
        send(reducer, LEFT_S)
    assert reducer.closed


def test_a_late_sender_still_gives_a_stall_time() -> None:
    assert send(Reducer(beats=2), left_s=5.0) == pytest.approx(3.0)
