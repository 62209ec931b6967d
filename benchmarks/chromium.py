"""The live page in a browser: where one is installed, and the page's server as a process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed_training.errors import ConfigError

ROOT = Path(__file__).parents[1]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
END_S = 20.0
# Run before the page's own scripts: milliseconds until the leaderboard, which is filled last, is in a frame.
WATCH = """
window.rowsAtMs = new Promise((known) => {
  new MutationObserver((changes, watch) => {
    if (!document.querySelector("#board-grid tbody tr")) return;
    watch.disconnect();
    requestAnimationFrame(() => known(performance.now()));
  }).observe(document, { childList: true, subtree: true });
});
"""
ROWS_MS = "window.rowsAtMs"


def find_chromium() -> str:
    """Raises ConfigError where there is none."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise ConfigError("no browser is installed here; run: apt-get install chromium")
    return found


@contextmanager
def served(run_dir: Path) -> Iterator[tuple[str, int]]:
    """(URL, process id) of the page of a run. Raises ConfigError when it does not start; it has said why."""
    command = [sys.executable, "-m", "distributed_training.dashboard", "--run-dir", str(run_dir), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        if len(said) < 2:
            raise ConfigError(f"the page of {run_dir} does not start")
        yield said[1], process.pid
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"the page's server did not end within {END_S:.0f} s of being asked to", file=sys.stderr)
