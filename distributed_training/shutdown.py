"""From a stop request to the end of the process, within a limit that holds whatever hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Coroutine

SHUTDOWN_S = 8.0
EXIT_FORCED = 1

log = logging.getLogger(__name__)


def run_until_stopped(life: Coroutine[None, None, None], limit_s: float = SHUTDOWN_S) -> BaseException | None:
    """Run `life` in its own event loop; SIGINT or SIGTERM cancels it. Returns what it raised.

    `limit_s` after the signal the process exits with EXIT_FORCED: a thread of its own watches, so neither a blocked
    event loop nor threads that are joined at its end can outlast it.
    """
    limit = threading.Timer(limit_s, os._exit, (EXIT_FORCED,))
    limit.daemon = True
    try:
        return asyncio.run(_run(life, limit))
    finally:
        limit.cancel()


async def _run(life: Coroutine[None, None, None], limit: threading.Timer) -> BaseException | None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    node = asyncio.create_task(life, name="node")
    stop = asyncio.create_task(stopping.wait(), name="signals")
    await asyncio.wait({node, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not node.done():
        log.info("stopping on request")
        limit.start()
        node.cancel()
    return (await asyncio.gather(node, return_exceptions=True))[0]
