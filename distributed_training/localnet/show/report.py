"""report.png: loss by round beside each miner alone and one worker on all tokens; scores, weights, incentive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from distributed_training.localnet.show.result_text import checks_held

TOGETHER, UNION, GREY = "#0b6e4f", "#d1495b", "#8d99ae"
BARS = ("#30638e", "#6f9ceb", "#a9bcd0")
LABEL_GAP = 0.08  # of the range of the labelled values
TERMS = {"S": "steps (share of the largest)", "G": "fidelity", "B": "bandwidth", "I": "integrity"}


def write_report(path: Path, summary: Mapping[str, Any]) -> None:
    sides = {"axes.spines.top": False, "axes.spines.right": False}
    style: dict[Any, Any] = {"font.size": 9, "axes.titlelocation": "left", **sides}
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), height_ratios=(3, 2), constrained_layout=True)
        loss_curves(axes[0][0], summary)
        pay_bars(axes[0][1], summary)
        score_bars(axes[1][0], summary)
        incentive_curves(axes[1][1], summary)
        applied = sum(r["applied"] for r in summary["rounds"])
        failed = [name for name, ok in summary["checks"].items() if ok is False]
        verdict = f"failed: {', '.join(failed)}" if failed else checks_held(summary)
        figure.suptitle(
            f"{applied} rounds applied, seed {summary['seed']}, run {summary['manifest_sha256'][:12]}: {verdict}",
            x=0.01, ha="left", fontsize=11, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def miner_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """uid -> what the report calls it."""
    return {
        str(node["uid"]): f"{node['uid']} ({node['adversary']})" if node["adversary"] else str(node["uid"])
        for node in summary["nodes"].values()
        if node["role"] == "miner"
    }


def loss_curves(axes: Axes, summary: Mapping[str, Any]) -> None:
    """x: rounds done; 0 is the start, which lies far above the rest and is cut off."""
    solo = {uid: curve(losses) for uid, losses in summary["baseline_losses"]["solo"].items()}
    union = curve(summary["baseline_losses"]["union"])
    losses = {str(r["index"]): r["heldout_loss"] for r in summary["rounds"]}
    together = curve({"-1": summary["initial_heldout_loss"], **losses})
    for place, (xs, ys) in enumerate(solo.values()):
        axes.plot(xs, ys, color=GREY, lw=1, alpha=0.8, label="each miner alone" if place == 0 else None)
    axes.plot(*union, color=UNION, lw=1.5, ls="--", label="one worker on all tokens")
    axes.plot(*together, color=TOGETHER, lw=2.5, marker="o", ms=4, label="together")
    label_ends(axes, {f"uid {uid}": ys[-1] for uid, (xs, ys) in solo.items() if ys}, max(together[0], default=0))
    later = [y for xs, ys in (*solo.values(), union, together) for x, y in zip(xs, ys, strict=True) if x > 0]
    if later:
        low, high = min(later), max(later)
        margin = 0.06 * (high - low) + 1e-3
        axes.set_ylim(low - margin, high + 2 * margin)
    mark_kills(axes, summary)
    start = summary["initial_heldout_loss"]
    axes.set(title="Held-out loss" + ("" if start is None else f" (starts at {start:.2f})"), xlabel="rounds")
    axes.set_ylabel("nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def mark_kills(axes: Axes, summary: Mapping[str, Any]) -> None:
    """A dotted line with the node's name in the round in which it was killed."""
    for place, fault in enumerate(summary["faults"]):
        axes.axvline(fault["round"] + 0.5, color=UNION, lw=0.8, ls=":")
        axes.annotate(
            f"{fault['name']} killed", (fault["round"] + 0.5, 0.98 - 0.05 * (place % 4)), (3, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points", color=UNION, fontsize=7, va="top",
        )  # fmt: skip


def label_ends(axes: Axes, ends: Mapping[str, float], x: int) -> None:
    """Names at the right ends of lines; lines that end close together share one label."""
    groups: list[list[tuple[float, str]]] = []
    for name, y in sorted(ends.items(), key=lambda item: item[1]):
        if groups and y - groups[-1][-1][0] < LABEL_GAP * (max(ends.values()) - min(ends.values()) + 1e-9):
            groups[-1].append((y, name))
        else:
            groups.append([(y, name)])
    for group in groups:
        text = "uid " + ", ".join(name.removeprefix("uid ") for _, name in group)
        y = sum(y for y, _ in group) / len(group)
        axes.annotate(text, (x, y), (6, 0), textcoords="offset points", color=GREY, fontsize=7, va="center")


def curve(losses: Mapping[str, float | None]) -> tuple[list[int], list[float]]:
    points = sorted((int(index) + 1, loss) for index, loss in losses.items() if loss is not None)
    return [x for x, _ in points], [y for _, y in points]


def pay_bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    """Share of credited tokens, of each validator's weights, and of incentive, by uid."""
    names = miner_names(summary)
    credited = {
        uid: sum(r["credited_tokens"].get(uid) or 0 for r in summary["rounds"] if r["applied"]) for uid in names
    }
    total = sum(credited.values()) or 1.0
    series: dict[str, dict[str, float]] = {"credited tokens": {uid: n / total for uid, n in credited.items()}}
    for validator, row in summary["final"]["weights"].items():
        series[f"weights of validator {validator}"] = row
    series["incentive"] = summary["final"]["incentive"]
    colours = ["#c9cba3", *BARS[: len(series) - 2], TOGETHER]
    width = 0.8 / len(series)
    for place, (label, values) in enumerate(series.items()):
        xs = [x + (place - (len(series) - 1) / 2) * width for x in range(len(names))]
        ys = [100 * (values.get(uid) or 0.0) for uid in names]
        axes.bar(xs, ys, width * 0.92, label=label, color=colours[place % len(colours)])
        for x, y in zip(xs, ys, strict=True):
            if y == 0:
                axes.annotate("0", (x, 0), ha="center", va="bottom", fontsize=7, color=GREY)
    axes.set_xticks(range(len(names)), [f"uid {name}" for name in names.values()])
    axes.set(title="Work and pay by miner", ylabel="% of all")
    axes.legend(frameon=False, fontsize=8)


def score_bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    """The four terms of the last scores; S as a share of the largest, as it grows slowly from zero."""
    names = miner_names(summary)
    scored = [r["scores"] for r in summary["rounds"] if r["scores"]]
    last = {uid: dict(terms) for uid, terms in (scored[-1] if scored else {}).items()}
    most = max((terms["S"] or 0.0 for terms in last.values()), default=0.0)
    for terms in last.values():
        terms["S"] = (terms["S"] or 0.0) / most if most else 0.0
    width = 0.8 / len(TERMS)
    for place, (term, meaning) in enumerate(TERMS.items()):
        xs = [x + (place - 1.5) * width for x in range(len(names))]
        ys = [(last.get(uid) or {}).get(term) or 0.0 for uid in names]
        axes.bar(xs, ys, width * 0.92, label=f"{term} {meaning}", color=(*BARS, "#c9cba3")[place])
    axes.set_xticks(range(len(names)), [f"uid {name}" for name in names.values()])
    axes.set(title="Terms of the last scores", ylim=(0, 1.25))
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="upper left")


def incentive_curves(axes: Axes, summary: Mapping[str, Any]) -> None:
    names = miner_names(summary)
    xs = [r["index"] + 1 for r in summary["rounds"]]
    for place, (uid, name) in enumerate(names.items()):
        ys = [100 * (r["incentive"].get(uid) or 0.0) for r in summary["rounds"]]
        axes.plot(xs, ys, marker="o", ms=3, label=f"uid {name}", color=f"C{place}")
    axes.set(title="Incentive on chain by round", xlabel="rounds", ylabel="%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2)
