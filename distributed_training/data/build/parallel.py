"""Work in threads, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_Answer = SimpleQueue[Result | Exception]


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`work(item)` of each item in the order of the items, whichever is done first; `threads` items are under way.

    The first error is raised where its result would have come. Threads are daemons: whoever leaves early, also by
    Ctrl-C, waits for nobody.
    """
    tasks: SimpleQueue[tuple[Item, _Answer[Result]] | None] = SimpleQueue()
    pending: deque[_Answer[Result]] = deque()
    for _ in range(threads):
        Thread(target=_run, args=(work, tasks), daemon=True).start()
    try:
        for item in items:
            answer: _Answer[Result] = SimpleQueue()
            tasks.put((item, answer))
            pending.append(answer)
            if len(pending) >= threads:
                yield _taken(pending.popleft())
        while pending:
            yield _taken(pending.popleft())
    finally:
        while not tasks.empty():
            tasks.get()
        for _ in range(threads):
            tasks.put(None)


def _taken(answer: _Answer[Result]) -> Result:
    result = answer.get()
    if isinstance(result, Exception):
        raise result
    return result


def _run(work: Callable[[Item], Result], tasks: SimpleQueue[tuple[Item, _Answer[Result]] | None]) -> None:
    while (task := tasks.get()) is not None:
        item, answer = task
        try:
            answer.put(work(item))
        except Exception as error:  # handed over: raised where the result is taken
            answer.put(error)
