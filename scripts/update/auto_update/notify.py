"""systemd's notify protocol (sd_notify(3)) between node and supervisor: what the node says is passed on, but not that
it stops while another version is to take its place; in between the launcher itself says that all is well."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

SOCKET, PERIOD = "NOTIFY_SOCKET", "WATCHDOG_USEC"
MAX_BYTES = 4096
NOT_PASSED_ON = ("STOPPING=", "MAINPID=", "RELOADING=")


class Relay:
    """Nothing where no supervisor listens."""

    def __init__(self) -> None:
        self._to = os.environ.get(SOCKET, "")
        self._folder: Path | None = None
        if not self._to.startswith(("/", "@")):
            return
        self._folder = Path(tempfile.mkdtemp(prefix="launcher-"))
        self._from = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._from.setblocking(False)
        self._from.bind(str(self._folder / "notify"))

    def environment(self) -> dict[str, str]:
        """For the node."""
        return {} if self._folder is None else {SOCKET: str(self._folder / "notify")}

    def pass_on(self, *, alone: bool, stopping: bool) -> None:
        """alone: a version begins, ends or is on trial, so the launcher answers for it. stopping: for good."""
        if self._folder is None:
            return
        with suppress(BlockingIOError):
            while True:
                lines = self._from.recv(MAX_BYTES).decode(errors="replace").splitlines()
                kept = lines if stopping else [line for line in lines if not line.startswith(NOT_PASSED_ON)]
                self._say("\n".join(kept))
        if alone:
            self._say("WATCHDOG=1")

    def close(self) -> None:
        if self._folder is not None:
            self._from.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _say(self, text: str) -> None:
        with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto(text.encode(), "\0" + self._to[1:] if self._to[0] == "@" else self._to)
