"""What the user sees: a live table on a terminal, one line per event otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from distributed_training.localnet.events import Event, RunView
from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.run import pace
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.run.processes import Ended
from distributed_training.localnet.show.next_steps import next_lines
from distributed_training.localnet.show.result_text import result_lines
from distributed_training.localnet.show.story import story_lines
from distributed_training.localnet.show.table import Clock, event_line, render
from distributed_training.settings.entry import printable


class _Tenths:
    """Says every tenth of a long job once."""

    def __init__(self, say: Callable[[str], None], total: int) -> None:
        self._say, self._total, self._said = say, total, 0

    def advance(self, done: int) -> None:
        tenth = 10 * done // self._total if self._total else 0
        if tenth > self._said:
            self._said = tenth
            self._say(f"    {10 * tenth} %")


class Display:
    """Draws, remembers nothing but when things began."""

    def __init__(self, *, plain: bool, console: Console | None = None) -> None:
        printable(sys.stdout)
        self.console = console or Console(highlight=False)
        self.plain = plain or not self.console.is_terminal
        self._live: Live | None = None
        self._run: Run | None = None
        self._view: RunView | None = None
        self._rounds = 0
        self._block_s = 1.0
        self._began = time.monotonic()
        self._genesis: float | None = None
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """One line, above the table if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def start(self, run: Run, view: RunView, rounds: int) -> None:
        self._run, self._view, self._rounds, self._block_s = run, view, rounds, run.block_s
        self.say(
            f"run {run.paths.root}{' (resumed)' if run.resumed else ''}, seed {run.seed}, {rounds_in_words(rounds)}"
        )
        if not run.resumed:  # of such a one a part is over
            self.say(pace.in_words(run.block_s, run.manifest, rounds))
        self.say(f"starting {len(run.specs)} nodes; each loads its libraries first")
        for kill in run.kills:
            self.say(f"  will kill {kill.name} in round {kill.round} at its phase event {kill.phase!r}")
        if not self.plain:
            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="visible")
            self._live.start()

    def clock_started(self, genesis: float) -> None:
        """Unix time of block 0."""
        self._genesis = genesis
        if self.plain:
            self.say("all nodes are ready; the chain's clock runs")

    @property
    def block(self) -> int | None:
        return None if self._genesis is None else max(0, int((time.time() - self._genesis) / self._block_s))

    def event(self, name: str, event: Event) -> None:
        names = {} if self._view is None else {node.uid: node.name for node in self._view.nodes.values()}
        line = event_line(name, event, names) if self.plain else None
        if line is not None:
            block = "     -" if self.block is None else f"{self.block:>6}"
            self.say(f"[{block}] {line}")

    def ended(self, ended: Ended) -> None:
        """A process is over; one that failed is shown with the end of its log."""
        if ended.code == 0:
            return
        self.say(f"{ended.name} ended with exit code {ended.code}; the last lines of its log:")
        for line in ended.log_tail:
            self.say(f"    {line}")

    def update(self) -> None:
        """Redraw at most four times a second."""
        if self._live is None or self._run is None or self._view is None or time.monotonic() - self._drawn < 0.25:
            return
        self._drawn = time.monotonic()
        clock = Clock(self.block, time.monotonic() - self._began, self._rounds)
        self._live.update(render(self._view, self._run.manifest, clock, self.console.width), refresh=True)

    def end_live(self) -> None:
        """Leave the last picture on the screen."""
        if self._live is not None:
            self._drawn = 0.0
            self.update()
            self._live.stop()
            self._live = None

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal, a line each tenth otherwise; call it with the amount done so far."""
        if self.plain:
            self.say(what)
            yield _Tenths(self.say, total).advance
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total or None)
            yield lambda done: bar.update(task, completed=done)

    def result(self, summary: Mapping[str, Any], paths: RunPaths) -> int:
        """Print the summary and what one may do with it; the exit code of the demo."""
        for line in result_lines(summary):
            self.console.print(line, soft_wrap=True)
        for part in (story_lines(summary), next_lines(summary, paths)):
            self.say("")
            for line in part:
                self.say(line)
        return 0 if summary["ok"] else 1


def rounds_in_words(rounds: int) -> str:
    """As they are numbered everywhere."""
    return "1 round, round 0" if rounds == 1 else f"{rounds} rounds, round 0 to {rounds - 1}"
