"""From a stop request to the end of the process, within a limit that holds whatever hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress

SHUTDOWN_S = 8.0
EXIT_FORCED = 1

log = logging.getLogger(__name__)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that ask us to stop: Ctrl-C, a supervisor's, the end of the terminal unless nohup made us deaf to it."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if deaf else (signal.SIGHUP,)))


@contextmanager
def every_stop_as_ctrl_c() -> Iterator[None]:
    """All of them raise KeyboardInterrupt, so that whatever is under way clears up behind itself. In other threads than
    the main one it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = {number: signal.signal(number, interrupt) for number in stop_signals() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def run_until_stopped(life: Coroutine[None, None, None], limit_s: float = SHUTDOWN_S) -> BaseException | None:
    """Run `life` in its own event loop; a stop signal cancels it, further ones change nothing. Returns what it raised.

    `limit_s` after the signal the process exits with EXIT_FORCED: a thread of its own watches, so neither a blocked
    event loop nor threads that are joined at its end can outlast it.
    """
    requested, ended = threading.Event(), threading.Event()

    def enforce() -> None:
        requested.wait()
        if not ended.wait(limit_s):
            os._exit(EXIT_FORCED)

    threading.Thread(target=enforce, name="limit on a stop", daemon=True).start()
    try:
        return asyncio.run(_run(life, requested))
    finally:
        ended.set()


async def _run(life: Coroutine[None, None, None], requested: threading.Event) -> BaseException | None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    told = False

    def request(number: int, frame: object) -> None:
        """Between any two instructions, also of a load that keeps the loop: the limit counts from here."""
        nonlocal told
        if not told:
            told = True
            requested.set()
            with suppress(RuntimeError):  # the loop is over, the process nearly so
                loop.call_soon_threadsafe(stopping.set)

    former = {number: signal.signal(number, request) for number in stop_signals()}
    node = asyncio.create_task(life, name="node")
    stop = asyncio.create_task(stopping.wait(), name="signals")
    await asyncio.wait({node, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not node.done():
        log.info("stopping on request")
        node.cancel()
    result = (await asyncio.gather(node, return_exceptions=True))[0]
    if not told:  # else a second signal changes nothing until the process ends
        for number, handler in former.items():
            signal.signal(number, handler)
    return result
