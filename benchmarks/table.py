"""How every benchmark prints its rows, and which facts of the machine stand beside them."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 140  # when the output is no terminal


def show(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] = (), title: str = "", console: Console | None = None
) -> None:
    """Print `rows` as one table; columns default to the keys of all rows in order of appearance. None is shown as -."""
    names = list(columns) or list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    for name in names:
        numeric = any(isinstance(row.get(name), int | float) and not isinstance(row[name], bool) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(cell(row.get(name)) for name in names))
    (console or _console()).print(table, markup=False)


def cell(value: Any) -> str:
    """One value for people: at most four significant digits of a float, thousands apart, yes and no."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(cell(inner) for inner in value)
    return str(value)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=WIDTH, highlight=False)


@dataclass(slots=True)
class Stopwatch:
    """Wall and processor time of a benchmark, its child processes included once they were waited for."""

    load: tuple[float, float, float] = field(default_factory=os.getloadavg)
    _began: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=lambda: _cpu_seconds())

    def machine(self) -> dict[str, Any]:
        """Facts that a number means little without: cores, versions, load at the start, seconds, cpu seconds."""
        return {
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "torch": version("torch"),
            "load_average_at_start": [round(x, 2) for x in self.load],
            "seconds": round(time.perf_counter() - self._began, 2),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 2),
        }


def _cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
