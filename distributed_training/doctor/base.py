"""What a check is, what it finds, and how a set of checks is run: together, each within a time of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from distributed_training.errors import named

State = Literal["ok", "warn", "fail", "skipped"]
LIMIT_S = 12.0  # of one check, the wait for what it needs included
END_S = 1.0  # of what is cancelled
ALL_LIMIT_S = 17.0  # of all of them together

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw, in a line, and the command or the change that mends it; empty where nothing is to mend."""

    name: str
    state: State
    found: str
    fix: str = ""


class Unmet(Exception):
    """What a check needs is not there, and another check says why: this one is skipped. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Check(Generic[S]):
    """`ask(subject)` returns what it found; it raises Unmet where it cannot be asked, and leaves nothing behind.

    `slow_fix`: what to do about one that did not answer in `limit_s`, which is a failure.
    """

    name: str
    ask: Callable[[S], Awaitable[Sequence[Finding]]]
    slow_fix: str = "ask again; if it stays so, restart this machine"
    limit_s: float = LIMIT_S


@dataclass(slots=True)
class Needed(Generic[T]):
    """What several checks need, made once, by whoever asks first. `missing`: why they are skipped where it fails."""

    missing: str
    make: Callable[[], Awaitable[T]]
    limit_s: float = LIMIT_S / 2
    _task: asyncio.Task[T] | None = field(default=None, init=False)

    async def made(self) -> T:
        """For the check that is about it: raises what making it raised, TimeoutError after `limit_s`."""
        if self._task is None:
            self._task = asyncio.create_task(self._within())
        return await asyncio.shield(self._task)

    async def get(self) -> T:
        """For all other checks. Raises Unmet."""
        try:
            return await self.made()
        except Unmet:  # what it needs itself is not there
            raise
        except Exception as error:
            raise Unmet(self.missing) from error

    async def _within(self) -> T:
        async with asyncio.timeout(self.limit_s):
            return await self.make()


async def run_checks(subject: S, checks: Sequence[Check[S]], limit_s: float = ALL_LIMIT_S) -> AsyncGenerator[Finding]:
    """The findings of each check in the order of the list, as soon as they and those before are there. Never raises."""
    tasks = [asyncio.create_task(_asked(subject, check, min(limit_s, check.limit_s))) for check in checks]
    try:
        for task in tasks:
            for finding in await task:
                yield finding
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=END_S)


def sized(num_bytes: float) -> str:
    """In kB or MB, for a person."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


@asynccontextmanager
async def in_time(limit_s: float, what: str) -> AsyncIterator[None]:
    """Raises Unmet where the block takes longer: a busy machine's fault, and no failure of what was asked."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise Unmet(f"{what} within {limit_s:g} s: this machine is busy, try again") from None


async def in_thread(function: Callable[[], T]) -> T:
    """As asyncio.to_thread, in a thread that nobody waits for at the end: a disk or a driver may never answer."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if not answer.done():
            answer.set_exception(error) if error is not None else answer.set_result(value)  # type: ignore[arg-type]

    def work() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended without us
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=work, name="check", daemon=True).start()
    return await answer


def slow(name: str, fix: str) -> Finding:
    """Of what did not answer in its time. A machine that has too much to do is told apart from one that is broken."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 2 * cores:
        found = f"not known: this machine is too busy to answer in time (load {load:.0f} on {cores} cores)"
        return Finding(name, "warn", found, "stop what else runs here, and ask again")
    return Finding(name, "fail", "it did not answer in time", fix)


async def _asked(subject: S, check: Check[S], limit_s: float) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(limit_s):
            return await check.ask(subject)
    except Unmet as reason:
        return [Finding(check.name, "skipped", str(reason))]
    except TimeoutError:
        return [slow(check.name, check.slow_fix)]
    except Exception as error:  # a check that breaks must not hide what the others found
        found = f"the check itself failed: {named(error)}"
        return [Finding(check.name, "warn", found, "please report this; the other checks count")]
