"""What is tried again and again is said when it first fails, now and then while it lasts, and when it ends."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

SAY_EVERY_S = 60.0


class Retries:
    """A block in which one thing is tried until it works or the time is over."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log, self._what = log, what
        self._failed, self._worked = 0, False
        self._said_at = 0.0  # loop time

    def __enter__(self) -> Retries:
        return self

    def failed(self, error: BaseException | str) -> None:
        self._failed += 1
        now = asyncio.get_running_loop().time()
        if self._failed == 1:
            self._log.info("%s: %s", self._what, error)
        elif now < self._said_at + SAY_EVERY_S:
            return
        else:
            self._log.info("%s: still trying, %d tries failed, the last: %s", self._what, self._failed, error)
        self._said_at = now

    def worked(self) -> None:
        self._worked = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Say how it ended, if more went wrong than the one line tells."""
        if self._failed > 1:
            self._log.info("%s: %s, %d tries failed", self._what, "done" if self._worked else "over", self._failed)
