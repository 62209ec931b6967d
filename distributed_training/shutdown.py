"""From a request to leave to the end of the process: within a limit whatever hangs, or at the border of a round."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

from distributed_training.supervisor import notify

SHUTDOWN_S = 12.0  # supervisors wait 20 s before they kill

log = logging.getLogger(__name__)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those that ask us to stop: Ctrl-C, a supervisor's, the end of the terminal unless nohup made us deaf to it, and
    the one that asks to leave at the border of a round, for whoever is in none."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, *(() if deaf else (signal.SIGHUP,)))


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
            if signal.getsignal(number) is not signal.SIG_IGN:  # a node that stops is deaf until its process has ended
                signal.signal(number, handler)


class Border:
    """Where a node that was asked to (SIGUSR1) leaves of its own accord: the end of the round that is under way."""

    def __init__(self) -> None:
        self.asked = False
        self.where: Callable[[], str] | None = None  # says what is waited for; None: no round is under way


def run_until_stopped(
    life: Coroutine[None, None, None], limit_s: float = SHUTDOWN_S, border: Border | None = None
) -> BaseException | None:
    """Run `life` in its own event loop; a stop signal cancels it, further ones change nothing. Returns what it raised.

    SIGUSR1 only tells `border`, if a round is under way there; a stop signal still cancels after it.

    `limit_s` after a stop signal the process is over, with exit code 0, for it did what it was told: a thread of its
    own watches, so neither a blocked event loop, nor threads that are joined at its end, nor the end of the interpreter
    can outlast it. What it leaves half done is what a kill -9 may leave too: every file is written whole or not at all.
    """
    requested = threading.Event()

    def enforce() -> None:
        requested.wait()
        time.sleep(limit_s)
        with suppress(OSError):
            os.write(2, f"left after {limit_s:g} s: something here takes longer than that to end\n".encode())
        os._exit(0)

    threading.Thread(target=enforce, name="limit on a stop", daemon=True).start()
    return asyncio.run(_run(life, requested, border or Border()))


async def _run(life: Coroutine[None, None, None], requested: threading.Event, border: Border) -> BaseException | None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()

    def request(number: int, frame: object) -> None:
        """Between any two instructions, also of a load that keeps the loop: the limit counts from here."""
        with suppress(RuntimeError):  # the loop is over, the process nearly so
            if number == signal.SIGUSR1 and border.where is not None:
                loop.call_soon_threadsafe(_ask, border)
            elif not requested.is_set():
                requested.set()
                notify("STOPPING=1")
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
    for number, handler in former.items():  # a second signal changes nothing, not even while the interpreter ends
        signal.signal(number, signal.SIG_IGN if requested.is_set() else handler)
    return result


def _ask(border: Border) -> None:
    if not border.asked and border.where is not None:
        border.asked = True
        log.info("leaving on request once this is done: %s", border.where())
