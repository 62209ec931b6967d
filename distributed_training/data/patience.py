"""Pages that are waited for only as long as they are wanted: a source may take minutes, a round does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from distributed_training.data.base import Page, PageFacts, PageSource
from distributed_training.errors import DataUnavailable

LOOK_S = 0.02
MAX_LEFT = 16  # reads that nobody waits for any more; each holds a thread until the source answers


class PageReads:
    """Reads of one source, each in a thread of its own so that it can be left behind."""

    def __init__(self, source: PageSource) -> None:
        self.source = source
        self._left, self._lock = 0, Lock()

    def until(self, gave_up: Callable[[], bool], limit_s: float = math.inf) -> PageSource:
        """The same source; a page that is not there after `limit_s`, or when `gave_up()` turns true, is unavailable."""
        return _Bounded(self, gave_up, limit_s)

    def fetch(self, index: int, gave_up: Callable[[], bool], limit_s: float) -> Page:
        """Raises DataUnavailable for what the source cannot give, or not in time; whatever else the source raises."""
        if self._left >= MAX_LEFT:
            raise DataUnavailable(f"page {index} is not asked for: {self._left} pages have not come yet")
        answers: SimpleQueue[Page | Exception] = SimpleQueue()
        with self._lock:
            self._left += 1
        Thread(target=self._read, args=(index, answers), name=f"page {index}", daemon=True).start()
        waited_s = 0.0
        while True:
            try:
                answer = answers.get(timeout=LOOK_S)
            except Empty:
                waited_s += LOOK_S
                if gave_up() or waited_s >= limit_s:
                    raise DataUnavailable(f"page {index} did not come in time") from None
                continue
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _read(self, index: int, answers: SimpleQueue[Page | Exception]) -> None:
        try:
            answers.put(self.source.fetch(index))
        except Exception as error:  # handed over: raised where the page is waited for
            answers.put(error)
        finally:
            with self._lock:
                self._left -= 1


class _Bounded:
    """A PageSource; see PageReads.until."""

    def __init__(self, reads: PageReads, gave_up: Callable[[], bool], limit_s: float) -> None:
        self._reads, self._gave_up, self._limit_s = reads, gave_up, limit_s
        self.num_pages, self.sha256 = reads.source.num_pages, reads.source.sha256

    def fetch(self, index: int) -> Page:
        return self._reads.fetch(index, self._gave_up, self._limit_s)

    def facts(self, index: int) -> PageFacts:
        return self._reads.source.facts(index)

    def heldout(self) -> tuple[str, ...]:
        return self._reads.source.heldout()
