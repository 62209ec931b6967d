"""A sender whose stream broke sends its slice again, from the first chunk on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import cast

from samples import group

from distributed_training.averaging.inbox import Inbox
from distributed_training.averaging.scatter import receive_slice
from distributed_training.averaging.store import RoundStore
from distributed_training.averaging.works import WorkBook
from distributed_training.errors import NetworkFault
from distributed_training.network.base import Stream
from distributed_training.protocol.types import Candidate, Signed
from distributed_training.protocol.wire import encode_signed, encode_work
from distributed_training.simulation.loop import run

G = group(2)
SPEC = G.plan.slices[0]
FRAME_S, STALL_S = 1.0, 8.0


class Frames:
    """A stream from which a frame comes every FRAME_S, and that breaks after the last."""

    def __init__(self, frames: list[bytes]) -> None:
        self._frames, self.written = list(frames), list[bytes]()

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        await asyncio.sleep(FRAME_S)
        if not self._frames:
            raise NetworkFault("broken")
        return self._frames.pop(0)

    async def write(self, frame: bytes, timeout_s: float) -> None:
        self.written.append(frame)


def _sent(folder: Path) -> tuple[Candidate, Inbox, WorkBook, list[bytes]]:
    """Who sends SPEC's slice, where it goes, and its frames."""

    def yes(public_key: bytes, message: bytes, signature: bytes) -> bool:
        return True

    sender = next(c for c in G.plan.candidates if c.public_key != SPEC.reducer)
    made, works = G.made[sender.public_key], WorkBook(G.run, yes, RoundStore(folder))
    inbox = Inbox(G.plan, SPEC, frozenset({sender.public_key}))
    signed = encode_signed(Signed(encode_work(G.works[sender.public_key]), bytes(64)))
    chunks = list(made.chunks[SPEC.first_chunk : SPEC.last_chunk])
    frames = [signed, made.show(range(SPEC.first_chunk, SPEC.last_chunk)), *chunks]
    return sender, inbox, works, frames


def test_a_reducer_beats_while_chunks_come(tmp_path: Path) -> None:
    """What a sender wrote may be under way for longer than a stall time: it has to hear that chunks arrive."""
    sender, inbox, works, frames = _sent(tmp_path)
    stream = Frames(frames)
    run(receive_slice(cast(Stream, stream), sender, inbox, works, 4 * FRAME_S, 100.0))
    chunks = SPEC.last_chunk - SPEC.first_chunk
    assert stream.written == [b""] * chunks + [b"ok"], "one for each quarter of the stall time in which a chunk came"
    stream = Frames(frames)
    run(receive_slice(cast(Stream, stream), sender, inbox, works, 100.0, 100.0))
    assert stream.written == [b"ok"]


def test_who_sends_again_what_is_in_is_not_silent(tmp_path: Path) -> None:
    sender, inbox, works, frames = _sent(tmp_path)
    assert len(frames) >= 5

    async def story() -> bool:
        with suppress(NetworkFault):
            await receive_slice(cast(Stream, Frames(frames[:-1])), sender, inbox, works, STALL_S, 100.0)
        quiet = asyncio.create_task(inbox.silence(100.0, 2.5 * FRAME_S))
        await receive_slice(cast(Stream, Frames(frames)), sender, inbox, works, STALL_S, 100.0)
        return await quiet

    assert not run(story()), "every chunk came, and never was it quiet for so long"
