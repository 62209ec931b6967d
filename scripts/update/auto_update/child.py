"""The node as a child process: its own process group, ended politely when we end, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from auto_update.bounded import end_group, until_our_end

STOP_S = 20.0  # a node leaves within 15 s


class Child:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Raises OSError if it cannot be started."""
        self._process = subprocess.Popen(
            list(command), env=dict(environment), process_group=0, preexec_fn=until_our_end(signal.SIGTERM)
        )
        self._killed_at: float | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs. What it left of its group is ended with it."""
        if self._killed_at is not None and time.monotonic() >= self._killed_at:
            end_group(self.pid)
        code = self._process.poll()
        if code is not None:
            end_group(self.pid)
        return code

    def tell(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def stop(self, limit_s: float = STOP_S, number: int = signal.SIGTERM) -> None:
        """Asks it to end, once: a second signal could reach an interpreter that listens no more. Kills it `limit_s`
        later."""
        if self._killed_at is None:
            self._killed_at = time.monotonic() + limit_s
            self.tell(number)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.02)
        return code


def ended(child: Child | None) -> None:
    """Now, and politely."""
    if child is not None:
        child.stop()
        child.wait()


def left_behind(node: Path, pid_file: Path) -> int | None:
    """A node that a launcher of ours started and left when it was killed: its process, if it holds the node's lock."""
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text("utf-8"))
        if int((node / "lock").read_text("utf-8", errors="replace").split("\n")[0]) == pid:
            os.kill(pid, 0)
            return pid
    return None


def end_left_behind(pid: int, limit_s: float = STOP_S) -> None:
    """Not our child any more, so it is waited for by looking."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
