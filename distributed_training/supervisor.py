"""What the program that started us is told, if it listens: systemd's notify protocol, lines to a socket (sd_notify(3)).

READY=1 when the node has a state and begins its rounds, STATUS= with round and phase, WATCHDOG=1 while it makes
progress, EXTEND_TIMEOUT_USEC= while it loads and joins, STOPPING=1 from a stop signal on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

SOCKET, PERIOD = "NOTIFY_SOCKET", "WATCHDOG_USEC"
START_S = 300.0  # the longest that one step of a start may keep the event loop
BEAT_S = 10.0  # between two words where no watchdog asks for more


def notify(*lines: str) -> None:
    """Never raises, never waits; nothing where nobody listens."""
    address = os.environ.get(SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            line.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError):  # it has gone, or its queue is full: the next word may arrive
        return


def beat_s() -> float:
    """Seconds between two words: half of what the watchdog allows."""
    asked = os.environ.get(PERIOD, "")
    return min(BEAT_S, int(asked) / 2e6) if asked.isdigit() and int(asked) else BEAT_S


class Supervised:
    """What a node tells, as a sink of its events (`metrics.base.Sink`), and whether it still gets anywhere.

    A chain that stands still or is out of reach is waited for; a node that is in the same round after as many final
    blocks as `watch` was told hangs, and so does one whose event loop is blocked: then the watchdog bites.
    """

    def __init__(self) -> None:
        self._round: int | None = None  # the one under way; None: not ready yet
        self._final: Callable[[], int] = lambda: 0
        self._patience_blocks = 0
        self._mark: tuple[int | None, int] = (None, 0)  # round, the newest final block when it began

    def watch(self, final: Callable[[], int], patience_blocks: int) -> None:
        """final: the newest final block."""
        self._final, self._patience_blocks = final, patience_blocks

    def write(self, event: Mapping[str, Any]) -> None:
        kind, index = event["event"], event["round"]
        if kind == "ready":
            self._round = event["start_round"]
            notify("READY=1", f"STATUS=round {self._round} is the first")
        elif kind == "phase":
            notify(f"STATUS=round {index}: {event['phase']}")
        elif kind == "round":
            self._round = index + 1
            how = "applied" if event["applied"] else f"discarded, {event['reason']}"
            notify(f"STATUS=round {index}: {how}")

    def close(self) -> None:
        pass

    async def stay_in_touch(self) -> None:
        """Until cancelled. A start has failed for the supervisor when nothing is said for START_S."""
        while os.environ.get(SOCKET):
            if self._round is None:
                notify(f"EXTEND_TIMEOUT_USEC={int(START_S * 1e6)}")
            elif self._well():
                notify("WATCHDOG=1")
            await asyncio.sleep(beat_s())

    def _well(self) -> bool:
        final = self._final()
        if self._round != self._mark[0]:
            self._mark = (self._round, final)
        return final - self._mark[1] <= self._patience_blocks
