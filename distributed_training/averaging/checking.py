"""Chunks are checked as they come, in a thread, while the next ones are read: the loop does no work on them, and what
passed is never looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from distributed_training.averaging.codecs.base import Chunk, Codec, Layout
from distributed_training.errors import WireError
from distributed_training.protocol.merkle import digest

WAITING = 2  # chunks that have come and wait for the thread, which has as many at a time; then nothing more is read

Came = tuple[int, bytes]  # chunk of the vector, its bytes
Check = Callable[[int, bytes], Chunk]  # raises WireError


def checked_chunk(chunk: int, data: bytes, digest_: bytes, codec: Codec, layout: Layout) -> Chunk:
    """A chunk from anywhere against its digest, in canonical form. Raises WireError."""
    if digest(data) != digest_:
        raise WireError(f"chunk {chunk} is not the committed one")
    return codec.parse(data, layout, chunk)


class Checking:
    """An `async with` around the reading of one stream. Whatever came before a bad chunk, or before the stream broke,
    is taken; cancelled, it leaves no task behind."""

    def __init__(self, check: Check, take: Callable[[int, Chunk], None]) -> None:
        """check: runs in a thread, one call at a time, in order. take: on the loop, with what passed; may raise."""
        self._check, self._take = check, take
        self._waiting: list[Came] = []
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()

    async def put(self, chunk: int, data: bytes) -> None:
        """Raises what the check of a former chunk, or its taking, raised."""
        self._waiting.append((chunk, data))
        if self._task is None or (self._task.done() and self._task.exception() is None):
            self._task = asyncio.create_task(self._work(), name="check chunks")
        while len(self._waiting) >= WAITING and not self._task.done():
            self._room.clear()
            await self._room.wait()
        if self._task.done():
            self._task.result()

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                self._room.set()
                passed, error = await asyncio.to_thread(_passing, self._check, batch)
                for (chunk, _), parsed in zip(batch, passed, strict=False):
                    self._take(chunk, parsed)
                if error is not None:
                    raise error
        finally:
            self._room.set()

    async def __aenter__(self) -> Checking:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Until all that came is checked."""
        if self._task is None:
            return
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.cancel()
        (result,) = await asyncio.gather(self._task, return_exceptions=True)
        if kind is None and isinstance(result, BaseException):
            raise result


def _passing(check: Check, batch: Sequence[Came]) -> tuple[list[Chunk], WireError | None]:
    """Up to the first that does not pass."""
    passed = list[Chunk]()
    for chunk, data in batch:
        try:
            passed.append(check(chunk, data))
        except WireError as error:
            return passed, error
    return passed, None
