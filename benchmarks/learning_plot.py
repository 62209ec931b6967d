"""The picture of a run's card: held-out loss against tokens, bytes on the wire and simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.learning_plan import Finished, bytes_a_round
from benchmarks.learning_runs import ALONE, SYNCHRONOUS, TOGETHER, Setting
from distributed_training.errors import ConfigError

STEP_S, BYTES_PER_S = 0.1, 1e6  # of the slowest miner; of each miner's uplink
COLOURS = {TOGETHER: "#0b6e4f", ALONE: "#6f9ceb", SYNCHRONOUS: "#b3261e"}
STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def draw(path: Path, finished: Sequence[Finished]) -> None:
    """The first run that averages and whatever is comparable with it, each setting's mean over its seeds."""
    first = next((run.setting for run in finished if run.setting.who == TOGETHER), None)
    if first is None:
        raise ConfigError("nothing to draw: no run that averages is finished")
    settings = list({run.setting.identity: run.setting for run in finished if _comparable(run.setting, first)}.values())
    axes_of: list[tuple[str, Callable[[Setting], float]]] = [
        ("million tokens of all miners", lambda s: s.tokens_a_round / 1e6),
        ("MB that each miner sent", lambda s: bytes_a_round(s) / 1e6),
        (f"hours, {STEP_S:g} s a step and {BYTES_PER_S / 1e6:g} MB/s up", lambda s: round_s(s) / 3600),
    ]
    with matplotlib.rc_context(STYLE):
        figure, plots = pyplot.subplots(1, 3, figsize=(12, 3.8), sharey=True, layout="constrained")
        for axes, (label, unit) in zip(plots, axes_of, strict=True):
            for setting in settings:
                _line(axes, setting, [run for run in finished if run.setting == setting], unit(setting))
            axes.set_xlabel(label)
        plots[1].set_xscale("symlog")  # those alone send nothing
        plots[0].set_ylabel("held-out loss, nats per byte")
        plots[0].legend(fontsize=7)
        figure.savefig(path, dpi=90)
        pyplot.close(figure)


def _comparable(setting: Setting, first: Setting) -> bool:
    speeds = (max(first.speeds),) if setting.who == ALONE else first.speeds
    length = setting.steps * setting.rounds == first.steps * first.rounds
    alike = setting.speeds == speeds and setting.model == first.model
    return length and alike and setting.inner.get("decay_steps") == first.inner.get("decay_steps")


def round_s(setting: Setting) -> float:
    """Seconds of a round at STEP_S and BYTES_PER_S: its steps, then what a miner sends; nothing overlaps."""
    return setting.steps * STEP_S + bytes_a_round(setting) / BYTES_PER_S


def _line(axes: Axes, setting: Setting, runs: Sequence[Finished], unit: float) -> None:
    places = [done for done in runs[0].curve if done > 0]
    losses = [fmean(run.curve[done] for run in runs) for done in places]
    forgets = setting.who == ALONE and setting.fresh
    dashes = ":" if forgets else "-" if setting.optimizer == "muon" else "--"
    width = 1.3 if setting.steps <= 50 else 0.7
    places_at = [done * unit for done in places]
    axes.plot(places_at, losses, dashes, color=COLOURS[setting.who], lw=width, label=name(setting))


def name(setting: Setting) -> str:
    speeds = ",".join(map(str, setting.speeds)) if max(setting.speeds) > 1 else str(len(setting.speeds))
    who = {
        TOGETHER: f"{speeds} together, H {setting.steps}",
        ALONE: "one alone" + ", fresh" * setting.fresh,
        SYNCHRONOUS: f"{speeds} synchronous",
    }
    return f"{who[setting.who]}, {setting.optimizer}"
