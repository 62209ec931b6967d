"""Ctrl-C, SIGTERM, the end of the terminal: every stop of the demo takes the same orderly path."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distributed_training.shutdown import stop_signals

POLL_S = 0.2


class Interrupted(Exception):
    """Ctrl-C, or SIGTERM from whoever started us."""


class StopRequest:
    """Set by a signal; the loops look at it, so that every stop takes the same orderly path.

    Until there are processes to stop (`orderly`), a signal ends the work at hand at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self.orderly = False

    def check(self) -> None:
        if self.requested:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, POLL_S))
        self.check()


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    stop = StopRequest()

    def request(number: int, frame: object) -> None:
        stop.requested = True
        if not stop.orderly:
            raise Interrupted

    former = {number: signal.signal(number, request) for number in stop_signals()}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
