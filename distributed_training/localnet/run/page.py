"""The live page beside the demo (`--open`): one more process, its address first, a browser where there is a desktop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.localnet.run.stop import Interrupted, StopRequest

NAME = "page"
START_S = 30.0
POLL_S = 0.1


def show(url: str) -> None:
    """In the browser of a desktop. In a process of its own: some browsers talk, or hold up who starts them."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        subprocess.Popen(
            [sys.executable, "-m", "webbrowser", url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


class Page(NodeProcesses):
    """The page of a run, as a context manager: leaving it ends the page. A page that cannot be is said, and no more."""

    def __init__(
        self, paths: RunPaths, say: Callable[[str], None], stop: StopRequest, browse: Callable[[str], None] = show
    ) -> None:
        super().__init__()
        self._say, self._stop, self._browse = say, stop, browse
        self._log = paths.root / "page.txt"
        self._command = [*page_command(sys.executable, paths.root), "--port", "0"]

    def open(self) -> None:
        """Raises Interrupted."""
        before = self._log.stat().st_size if self._log.exists() else 0
        self.start(NAME, self._command, self._log)
        until = time.monotonic() + START_S
        while (url := address(said := self._said(before))) is None and self.running() and time.monotonic() < until:
            self._stop.sleep(POLL_S)
        if url is None:
            self._say(f"no page: {(said.splitlines() or ['it said nothing'])[-1]}")
            return
        self._say(f"page {url}")
        self._browse(url)

    def stay(self) -> None:
        """Until Ctrl-C, where somebody is there to press it: who watches wants to look when all is over."""
        if self.running() and sys.stdin.isatty() and sys.stdout.isatty():
            self._say("the page stays until Ctrl-C")
            try:
                while self.running():
                    self._stop.sleep(1.0)
            except Interrupted:
                pass

    def _said(self, before: int) -> str:
        with self._log.open("rb") as file:
            file.seek(before)
            return file.read().decode(errors="replace")


def page_command(python: str, run_dir: Path) -> list[str]:
    return [python, "-m", "distributed_training.dashboard", "--run-dir", str(run_dir)]


def address(said: str) -> str | None:
    """The first address in what the page's process has said."""
    found = re.search(r"http://[^\s/]+/", said)
    return None if found is None else found[0]
