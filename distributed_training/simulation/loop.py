"""An asyncio event loop whose time is virtual: when nothing is ready it jumps to the next timer.

One thread, no selector, no sockets. A job for an executor runs inline and finishes after the virtual seconds that it
asked for with `spend`, or goes on after them (`Later`). What a run does is a function of its inputs: tasks have serial
numbers as hashes, so that sets of tasks are walked in the same order in every process.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[asyncio.Future[Any], Callable[[], Any]]
_SHOWN_TASKS = 8


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: the tasks named wait for each other for ever."""


@dataclass(frozen=True, slots=True)
class Later:
    """What a job returns that is not done: `then` is run in its place after so many virtual seconds."""

    seconds: float
    then: Callable[[], Any]


class SerialTask(asyncio.Task[Any]):
    """A task whose hash is its number in its loop. The id that Task hashes by differs from run to run, and with it the
    order in which a TaskGroup cancels its children."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, serial: int, **options: Any) -> None:
        self._serial = serial
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Jump:
    """Takes the place of the selector: where a real loop would sleep, it moves the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock(self._loop.pending())
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        """Nothing is open."""


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module. `time()` starts at 0 and is in virtual seconds."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = _Jump(self)
        self._serials = itertools.count(1)
        self._spent: float | None = None  # of the job that is running, None outside jobs
        self._queues: dict[Executor, deque[_Job]] = {}
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def jump(self) -> None:
        """To the next timer. `_run_once` has dropped cancelled timers from the front of the heap."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._now = max(self._now, scheduled[0].when())

    def pending(self) -> str:
        """Names of the tasks that are not done, in the order they were made."""
        waiting = [t for t in asyncio.all_tasks(self) if not t.done()]
        names = [t.get_name() for t in sorted(waiting, key=hash)]
        more = f" and {len(names) - _SHOWN_TASKS} more" if len(names) > _SHOWN_TASKS else ""
        return f"at {self._now:.3f} s nothing can happen any more; waiting: {', '.join(names[:_SHOWN_TASKS])}{more}"

    # --- work that a real node gives to threads -----------------------------------------------------

    def spend(self, seconds: float) -> None:
        """Called by the running job: it takes this many virtual seconds more."""
        if self._spent is None:
            raise RuntimeError("spend() belongs into a function that run_in_executor runs")
        self._spent += seconds

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run `func` inline; the future is done after what it spent. An executor does one job after the other, the
        default one (None) all at once, as its threads would."""
        future: asyncio.Future[T] = self.create_future()
        if executor is None:
            self.call_soon(self._run_job, future, partial(func, *args), lambda: None)
        else:
            queue = self._queues.setdefault(executor, deque())
            queue.append((future, partial(func, *args)))
            if len(queue) == 1:
                self.call_soon(self._run_next, executor)
        return future

    def _run_job(self, future: asyncio.Future[Any], func: Callable[[], Any], ended: Callable[[], None]) -> None:
        """`ended` is called when it is over, after the future is done."""
        if future.cancelled():
            self.call_later(0.0, ended)
            return
        self._spent, error, result = 0.0, None, None
        try:
            result = func()
        except Exception as raised:  # it belongs to whoever awaits the future
            error = raised
        spent, self._spent = self._spent, None
        if isinstance(result, Later):
            self.call_later(spent + result.seconds, self._run_job, future, result.then, ended)
            return
        self.call_later(spent, _deliver, future, result, error)
        self.call_later(spent, ended)

    def _run_next(self, executor: Executor) -> None:
        self._run_job(*self._queues[executor][0], partial(self._ran, executor))

    def _ran(self, executor: Executor) -> None:
        queue = self._queues[executor]
        queue.popleft()
        if queue:
            self._run_next(executor)
        else:
            del self._queues[executor]

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    # --- what BaseEventLoop leaves to a loop with a selector -----------------------------------------

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else could be waiting for a selector."""

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return SerialTask(coro, loop=loop, serial=next(self._serials), **options)


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a new VirtualLoop. Raises Deadlock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Cycles are looked for when somebody says so (`gc.collect`): a walk over what many nodes hold takes an eighth of
    all time, and finds little."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
