"""report.png: held-out loss beside each miner alone and one worker on all tokens; work and pay, scores, incentive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distributed_training.localnet.names import brief, nodes_of
from distributed_training.localnet.show import curves
from distributed_training.localnet.show.result_text import checks_held
from distributed_training.localnet.show.story import size, work_done

TOGETHER, CREDITED, BAD = "#0b6e4f", "#d9c98f", "#b3261e"
BARS = ("#30638e", "#6f9ceb", "#a9bcd0", "#d0d7e1")
MANY = 12  # miners: above, marks instead of bars, and not every name
NAME_LENGTH = 12  # of a name that stands under bars, not askew
TERMS = {"S": "steps, share of the largest", "G": "fidelity", "B": "bandwidth", "I": "integrity"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def write_report(path: Path, summary: Mapping[str, Any]) -> None:
    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(13.5, 8.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03, hspace=0.04)  # type: ignore[union-attr]
        top, bottom = (figure.add_subfigure(part) for part in figure.add_gridspec(2, 1, height_ratios=(1.25, 1)))
        heading(top, summary)
        curves.losses(top, summary)
        pay, scores, incentive = bottom.subplots(1, 3, width_ratios=(1.15, 1.15, 1))
        pay_bars(pay, summary)
        score_bars(scores, summary)
        curves.incentive(incentive, summary)
        incentive.set_title("Incentive on chain", pad=legend_pad(4))
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def heading(figure: Any, summary: Mapping[str, Any]) -> None:
    """What was trained, by how many, for how long; then whether it holds."""
    failed = [name for name, ok in summary["checks"].items() if ok is False]
    verdict = f"FAILED: {', '.join(failed)}" if failed else checks_held(summary)
    run = f"seed {summary['seed']}, run {summary['manifest_sha256'][:12]}: {verdict}"
    figure.suptitle(f"{size(summary)}: {work_done(summary)}\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.01, 0.925, run, ha="left", va="top", fontsize=9.5, color=BAD if failed else "#444444")


def pay_bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Share of credited tokens, of each validator's weights, and of incentive, by miner."""
    miners, validators = nodes_of(summary, "miner"), nodes_of(summary, "validator")
    credited = {
        uid: sum(r["credited_tokens"].get(uid) or 0 for r in summary["rounds"] if r["applied"]) for uid in miners
    }
    total = sum(credited.values()) or 1.0
    series = {"tokens credited": {uid: n / total for uid, n in credited.items()}}
    for uid, row in summary["final"]["weights"].items():
        series[f"weight by {validators.get(uid, f'uid {uid}').partition(' ')[0]}"] = row
    series["incentive on chain"] = summary["final"]["incentive"]
    colours = [CREDITED, *(BARS[i % len(BARS)] for i in range(len(series) - 2)), TOGETHER]
    percent = {
        label: {uid: 100 * values.get(uid, 0.0) if values else None for uid in miners}
        for label, values in series.items()
    }
    by_miner(axes, miners, percent, colours)
    axes.set_title("Work and pay", pad=legend_pad(len(series)))
    axes.set_ylabel("% of all")


def score_bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    """The four terms of the last scores; S as a share of the largest, as it grows slowly from zero."""
    miners = nodes_of(summary, "miner")
    scored = [r for r in summary["rounds"] if r["scores"]]
    last = {uid: dict(terms) for uid, terms in (scored[-1]["scores"] if scored else {}).items()}
    most = max((terms["S"] or 0.0 for terms in last.values()), default=0.0)
    for terms in last.values():
        terms["S"] = terms["S"] / most if most and terms["S"] is not None else terms["S"]
    series = {
        f"{term} {meaning}": {uid: last.get(uid, {}).get(term) for uid in miners} for term, meaning in TERMS.items()
    }
    by_miner(axes, miners, series, [*BARS[:3], CREDITED])
    after = f" after {scored[-1]['index'] + 1} rounds" if scored else ": none yet"
    axes.set_title(f"Terms of the score{after}", pad=legend_pad(len(series)))
    axes.set_ylim(0, 1.04)


def by_miner(
    axes: Axes, miners: Mapping[str, str], series: Mapping[str, Mapping[str, float | None]], colours: list[str]
) -> None:
    """A group of bars for each miner, `-` where nothing was measured; of many, a mark for each value. The legend stands
    above, off the data."""
    width = 0.84 / len(series)
    for place, (label, values) in enumerate(series.items()):
        ys = [float("nan") if value is None else value for value in (values[uid] for uid in miners)]
        if len(miners) > MANY:
            size_ = max(2.5, 7 - 1.5 * place)  # what lies on another shows all the same
            axes.plot(range(len(ys)), ys, marker="o", ms=size_, lw=0, label=label, color=colours[place])
            continue
        xs = [x + (place - (len(series) - 1) / 2) * width for x in range(len(ys))]
        axes.bar(xs, ys, width * 0.9, label=label, color=colours[place])
        for x in (x for x, y in zip(xs, ys, strict=True) if not y > 0):
            text = "0" if ys[xs.index(x)] == 0 else "-"
            axes.annotate(text, (x, 0), ha="center", va="bottom", fontsize=7, color=curves.GREY)
    every = -(-len(miners) // MANY) if miners else 1
    shown = list(miners.values())[::every]
    crowded = len(shown) > 5 or any(len(name.partition(" (")[0]) > NAME_LENGTH for name in shown)
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(0, len(miners), every), [under(brief(name), one_line=crowded) for name in shown], **turned)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlim(-0.6, max(len(miners), 1) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.2)


def legend_pad(entries: int) -> float:
    """Points between axes and title, for a legend of two columns."""
    return 8 + 13 * -(-entries // 2)


def under(name: str, *, one_line: bool) -> str:
    """A node's name as a mark of the x axis: what is in brackets on lines of its own."""
    head, _, rest = name.partition(" (")
    return name if one_line else "\n".join([head, *wrap(f"({rest}", NAME_LENGTH)])
