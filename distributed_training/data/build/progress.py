"""What the person who waits sees: a bar on stderr, and nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[int], None]


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Tick]:
    """`tick(bytes)` moves the bar by one and adds to the megabytes beside it."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[megabytes]:,.1f} MB"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    moved = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task(title, total=total, megabytes=0.0)

        def tick(num_bytes: int) -> None:
            nonlocal moved
            moved += num_bytes
            shown.update(task, advance=1, megabytes=moved / 1e6)

        yield tick
