"""The demo's last will: a small process that outlives it and ends whatever it leaves behind.

Reads lines `+PID` and `-PID` (process groups) on standard input. When the input ends, because the demo ended in
whatever way, every group still listed gets SIGTERM, and SIGKILL after a few seconds. Standard library only: it runs
with `python -I -S`.
"""

from __future__ import annotations

import os
import signal
import sys
import time

GRACE_S = 5.0


def signal_group(group: int, number: int) -> bool:
    """False when nothing of the group is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS answers so for a group of zombies
        return False
    return True


def end_groups(groups: set[int], grace_s: float = GRACE_S) -> None:
    """SIGTERM, then SIGKILL for what is left after `grace_s`. Returns as soon as all are gone."""
    left = {group for group in groups if signal_group(group, signal.SIGTERM)}
    until = time.monotonic() + grace_s
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = {group for group in left if signal_group(group, 0)}
    for group in left:
        signal_group(group, signal.SIGKILL)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the input ends it
    groups: set[int] = set()
    for line in sys.stdin:
        sign, number = line[:1], line[1:].strip()
        if number.isdigit():
            (groups.add if sign == "+" else groups.discard)(int(number))
    end_groups(groups)


if __name__ == "__main__":
    main()
