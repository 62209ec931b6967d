"""States go out in the background: a store that is slow or away delays no round, and the newest state wins."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from distributed_training.checkpoints.base import CheckpointRef, CheckpointStore
from distributed_training.errors import ConfigError, LocalFault, WireError, said
from distributed_training.metrics.events import Checkpoint, Fault
from distributed_training.ongoing import Ongoing
from distributed_training.roles.exporting import Exporter
from distributed_training.roles.parts import Parts
from distributed_training.training.outer import RunState

log = logging.getLogger(__name__)

MAX_PAUSE_S = 60.0
Announce = Callable[[CheckpointRef], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Staged:
    index: int
    folder: Path


class Publisher:
    """Owner and miners alike: `offer` a state after a round, `finish` at the end of the run, always `cancel`.

    Events: `checkpoint {round, path, sha256}` when a state is out and announced; `fault {what: checkpoint}` when
    publishing begins to fail, not for each try.
    """

    def __init__(
        self,
        parts: Parts,
        store: CheckpointStore,
        exporter: Exporter,
        announce: Announce | None = None,
        *,
        staging: str = "staging",
    ) -> None:
        """announce: says on chain what was published; raises LocalFault when that has to be tried again. staging: a
        folder of the node that is this publisher's alone."""
        self._p, self._store, self._exporter, self._announce = parts, store, exporter, announce
        self._staging = parts.store.root / staging
        self._waiting: _Staged | None = None
        self._offered, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._serials = count()
        self._trouble = Ongoing(log, "checkpoints are not published", "checkpoints are published again", logging.ERROR)
        self._task: asyncio.Task[None] | None = None

    async def offer(self, index: int, state: RunState, root: bytes) -> None:
        """Write the state at the start of round `index` to our disk; from there it goes out. Own trouble is told."""
        if self._task is not None and self._task.done():
            self._task.result()  # it ends only by an error that nobody expected
        try:
            staged = await self._p.training.run(lambda: self._stage(index, state, root))
        except LocalFault as error:
            self._tell(index, error)
            return
        old, self._waiting = self._waiting, staged
        self._offered.set()
        self._idle.clear()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="publisher")
        if old is not None:  # nobody has begun with it, and nobody will
            await self._drop(old)

    async def finish(self, patience_s: float) -> None:
        """Wait until the newest state is out, but not for ever."""
        idle = asyncio.create_task(self._idle.wait(), name="publisher idle")
        ends = {idle} if self._task is None else {idle, self._task}
        done, _ = await asyncio.wait(ends, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if self._task in done:
            self._task.result()  # it ends only by an error that nobody expected
        elif not done:
            log.warning("the newest checkpoint was not published within %.0f s", patience_s)

    async def cancel(self) -> None:
        """Idempotent. A publication that is under way is whole or absent, whenever we end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    # --- one after the other ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._offered.wait()
            self._offered.clear()
            staged, self._waiting = self._waiting, None
            if staged is not None:
                await self._try_until_out(staged)
                await self._drop(staged)
            if self._waiting is None:
                self._idle.set()

    async def _try_until_out(self, staged: _Staged) -> None:
        """Again and again, until it is out or a newer state is there."""
        pause_s = self._p.clock.block_s
        while not await self._out(staged):
            try:
                async with asyncio.timeout(pause_s):
                    await self._offered.wait()
                return
            except TimeoutError:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _out(self, staged: _Staged) -> bool:
        """One try. False: it failed, and if that is new, it was said."""
        try:
            ref = await asyncio.to_thread(self._store.publish, staged.index, staged.folder)
            if self._announce is not None:
                await self._announce(ref)
        except (LocalFault, ConfigError, WireError) as error:
            self._tell(staged.index, error)
            return False
        self._trouble.end()
        self._p.metrics.emit(Checkpoint(path=ref.location, sha256=ref.digest.hex()), round=staged.index)
        try:
            await asyncio.to_thread(self._store.prune, {staged.index})
        except (LocalFault, WireError) as error:  # there is more than need be; the next time
            log.warning("round %d: old checkpoints stay: %s", staged.index, error)
        return True

    def _tell(self, index: int, error: Exception) -> None:
        if self._trouble.begin(f"round {index}: {said(error)}"):
            self._p.metrics.emit(Fault(what="checkpoint", detail=said(error)), round=index)

    def _stage(self, index: int, state: RunState, root: bytes) -> _Staged:
        folder = self._staging / f"{index:06d}-{next(self._serials)}"  # a round may come again while it goes out
        try:
            if self._task is None:  # what a killed process of ours left
                shutil.rmtree(self._staging, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            raise LocalFault(f"cannot write a checkpoint to {folder}: {error.strerror}") from None
        self._exporter.write(folder, index, state, root)
        return _Staged(index, folder)

    async def _drop(self, staged: _Staged) -> None:
        await asyncio.to_thread(shutil.rmtree, staged.folder, ignore_errors=True)
