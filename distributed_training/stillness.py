"""Did everything stand still? A laptop that sleeps, a virtual machine that is paused, a process that is stopped.

Nothing is decided by it but what is said: rounds follow from the chain, whatever a clock shows.
"""

from __future__ import annotations

import asyncio
import logging
import time

LEAST_S = 10.0  # less is a busy machine's
PERIOD_S = 1.0

log = logging.getLogger(__name__)


def clocks() -> tuple[float, float]:
    """(wall clock, clock that stops while the machine sleeps), both in seconds."""
    return time.time(), time.monotonic()


async def say_after_a_pause() -> None:
    """For as long as a node lives: one line after each time in which nothing could happen here. Never returns."""
    while True:
        wall, awake = clocks()
        await asyncio.sleep(PERIOD_S)
        now, awake_now = clocks()
        if said := pause(now - wall - PERIOD_S, awake_now - awake - PERIOD_S):
            log.warning("%s", said)


def pause(wall_s: float, awake_s: float) -> str | None:
    """What to say of a second that took so much longer by the two clocks; None for nothing worth a word."""
    if wall_s < LEAST_S:
        return None
    what = "this machine slept, or its clock was set" if awake_s < LEAST_S else "this process was stopped"
    return f"stood still for {wall_s:.0f} s: {what}; a round that ended meanwhile is lost to this node"
