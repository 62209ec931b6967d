"""Pay per unit of compute of cheats, honest work being 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.adversaries_rows import LENGTHS, STEPS, VALIDATORS, Row, said

STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
COLOURS = {100: "#6f9ceb", STEPS: "#0b6e4f", 2059: "#b3261e"}
TAIL = re.compile(r"(\d+) of (\d+) steps done, thrown away")


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Left: invented tails by the part that is done. Right: the other policies, and the best of all."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
        _tails(left, rows)
        _others(right, [r for r in rows if r["class"] == "b" and not TAIL.fullmatch(r["attack"])])
        figure.savefig(path, dpi=90)
        pyplot.close(figure)


def _tails(axes: Axes, rows: Sequence[Row]) -> None:
    for steps in LENGTHS:
        for validators, dashes in zip(VALIDATORS, ("-", "--"), strict=True):
            points = [
                (int(match[1]) / steps, r["pay_per_compute"])
                for r in rows
                if r["group"] == said(validators) and (match := TAIL.fullmatch(r["attack"])) and int(match[2]) == steps
            ]
            axes.plot(*zip(*points, strict=True), dashes, color=COLOURS[steps], label=f"H {steps}, {said(validators)}")
    axes.axhline(1.0, color="black", lw=0.7)
    axes.set_xlabel("part of the claim that is done, the rest invented; identities thrown away")
    axes.set_ylabel("pay per unit of compute, honest = 1")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1)
    axes.legend(fontsize=7)


def _others(axes: Axes, rows: Sequence[Row]) -> None:
    worst: dict[str, Row] = {}
    for one in rows:
        if one["pay_per_compute"] is not None and "honest for ever" not in one["attack"]:
            former = worst.get(one["attack"])
            if former is None or one["pay_per_compute"] > former["pay_per_compute"]:
                worst[one["attack"]] = one
    names = sorted(worst, key=lambda name: worst[name]["pay_per_compute"])
    values = [worst[name]["pay_per_compute"] for name in names]
    axes.barh(names, values, xerr=[worst[name]["error"] or 0.0 for name in names], color="#0b6e4f", height=0.6)
    axes.axvline(1.0, color="black", lw=0.7)
    axes.set_xlabel("pay per unit of compute, honest = 1; the worst of 1 and 5 validators")
    axes.tick_params(axis="y", labelsize=7)
