"""A trouble that lasts is said when it begins and when it is over, however often it is met in between."""

from __future__ import annotations

import asyncio
import logging
import time


class Ongoing:
    """`began`, with its cause, when it is met first; `over`, with how long and how many tries, when it ends. What is
    met in between is DEBUG, of what is itself DEBUG nothing. From any thread; never raises."""

    def __init__(self, log: logging.Logger, began: str, over: str, level: int = logging.WARNING) -> None:
        self._log, self._began, self._over, self._level = log, began, over, level
        self._since: float | None = None  # None: it is not there
        self._last, self._times = 0.0, 0

    def begin(self, why: object = "") -> bool:
        """It is met, because of `why`. True: it is new."""
        self._last, new = now_s(), self._since is None
        self._since, self._times = self._last if self._since is None else self._since, 1 if new else self._times + 1
        text = f"{self._began}: {why}" if f"{why}" else self._began
        if new or self._level > logging.DEBUG:
            self._log.log(self._level if new else logging.DEBUG, "%s", text)
        return new

    def end(self) -> bool:
        """It is over, if it was there. True: it was."""
        if self._since is None:
            return False
        lasted, self._since = now_s() - self._since, None
        tries = "" if self._times == 1 else f", {self._times} tries failed"
        self._log.log(min(self._level, logging.INFO), "%s after %s%s", self._over, duration(lasted), tries)
        return True

    def met_since(self, at_s: float) -> bool:
        """at_s: by `now_s`."""
        return self._since is not None and self._last >= at_s


def now_s() -> float:
    """Of the event loop, which may be a virtual one; in other threads that of this machine since its start."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


def duration(seconds: float) -> str:
    """In words as short as a line wants them: 38 s, 12 min, 3.5 h, 2.1 days."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
