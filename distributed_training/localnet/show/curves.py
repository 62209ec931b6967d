"""The lines of report.png: equal ones are drawn once, what stands out is explained, names are off the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from distributed_training.localnet.names import brief, nodes_of

TOGETHER, UNION, GREY, EVENT = "#0b6e4f", "#d1495b", "#7b8794", "#8a4fbe"
CYCLE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#555555")  # Okabe and Ito's
DASHES = ("-", (0, (4, 2)), (0, (1, 1)), (0, (6, 1, 1, 1)))  # what lies below shows through
MOST_LABELS = 8  # beside one plot
LABEL_GAP = 0.062  # between them, of the height
NAMED = 3  # of the miners that share a line
SPIKE = 0.15  # of the range: a loss so much above both neighbours stands out
HEADROOM = 0.5  # of the height
FAINT = 0.25  # lines of many
SAME = 5e-4  # of the range: lines this close are one

Summary = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Line:
    name: str
    points: dict[int, float]  # number of rounds that were over (0: the start) -> value
    colour: str
    width: float = 1.0
    style: str = "-"
    short: str = ""  # as it is called at its end, before the value

    def after(self, first: int) -> tuple[list[int], list[float]]:
        shown = {x: y for x, y in self.points.items() if x >= first}
        return list(shown), list(shown.values())


def losses(figure: Any, summary: Summary) -> None:
    """The whole run, every round from the start on; beside it the second half, whose differences matter."""
    whole, end = figure.subplots(1, 2, width_ratios=(1.35, 1))
    lines = loss_lines(summary)
    last = max((x for line in lines for x in line.points), default=0)
    first = max(1, last // 2)
    for line in lines:
        faint = line.colour == GREY and len(lines) > 2 + MOST_LABELS
        look = {"color": line.colour, "lw": line.width, "ls": line.style, "alpha": FAINT if faint else 1.0}
        whole.plot(*line.after(0), label=line.name, **look)
        end.plot(*line.after(first), marker="" if faint else "o", ms=2.5 + line.width / 2, **look)
    whole.plot(*lines[-1].after(0), lw=0, marker="o", ms=4, color=TOGETHER)
    whole.set_title("Held-out loss", pad=22)
    end.set_title(f"After {first} rounds and more, closer" if last > 1 else "At the end, closer", pad=22)
    for axes in (whole, end):
        rounds_axis(axes)
        axes.set_ylabel("nats per token")
    cut = without_spikes(lines, first)
    if cut:
        margin = 0.08 * (max(cut) - min(cut)) + 1e-3
        end.set_ylim(min(cut) - margin, max(cut) + margin)
    mark_spikes(whole, end, lines, first)
    label_ends(end, end_labels(lines))
    tell_events(whole, summary)
    legend = {name: handle for handle, name in zip(*whole.get_legend_handles_labels(), strict=True)}
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.2, "ncols": 4}
    for handle in whole.legend(legend.values(), legend.keys(), **place).legend_handles:
        handle.set_alpha(1.0)


def loss_lines(summary: Summary) -> list[Line]:
    """Each miner alone, one worker on all tokens, together."""
    names = nodes_of(summary)
    solo = summary["baseline_losses"]["solo"]
    lines = [
        Line("each miner alone", points(values), GREY, 0.9, short=f"{brief(names.get(uid, f'uid {uid}'))} alone")
        for uid, values in solo.items()
    ]
    union = points(summary["baseline_losses"]["union"])
    lines.append(Line("one worker on all tokens", union, UNION, 1.6, "--", "one worker on all tokens"))
    rounds = {str(r["index"]): r["heldout_loss"] for r in summary["rounds"]}
    together = points({"-1": summary["initial_heldout_loss"], **rounds})
    return [*lines, Line("together, averaged peer to peer", together, TOGETHER, 2.4, short="together")]


def points(values: Mapping[str, float | None]) -> dict[int, float]:
    """By the number of rounds that were over."""
    return dict(sorted((int(index) + 1, value) for index, value in values.items() if value is not None))


def end_labels(lines: Sequence[Line]) -> list[tuple[float, str, str]]:
    """(value, text, colour) of what each line ends at; many miners alone are one range."""
    ends = [(list(line.points.values())[-1], line) for line in lines if line.points]
    alone = [(y, line) for y, line in ends if line.colour == GREY]
    shown = [(y, f"{line.short} {y:.3f}", line.colour) for y, line in ends if line.colour != GREY or len(alone) <= 6]
    if len(alone) > 6:
        ys = sorted(y for y, _ in alone)
        shown.append((ys[len(ys) // 2], f"{len(ys)} miners alone, {ys[0]:.3f} to {ys[-1]:.3f}", GREY))
    return shown


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Right of the plot, each at its line's height or as near as there is room, with a thin line to where it ends."""
    low, high = axes.get_ylim()
    places = spread([(y - low) / (high - low) for y, _, _ in sorted(labels)])
    edge = blended_transform_factory(axes.transAxes, axes.transData)
    for place, (y, text, colour) in zip(places, sorted(labels), strict=True):
        axes.annotate(
            text, (1.0, y), (1.045, place), xycoords=edge, textcoords="axes fraction", color=colour, fontsize=8,
            va="center", arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkA": 0,
                                     "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float = LABEL_GAP) -> list[float]:
    """Ascending places at least a gap apart, near those wanted, in 0..1 where they fit."""
    groups: list[tuple[float, list[float]]] = []  # (lowest place, what its members wanted)
    for y in wanted:
        groups.append((y, [y]))
        while len(groups) > 1 and groups[-2][0] + gap * len(groups[-2][1]) > groups[-1][0]:
            members = groups[-2][1] + groups[-1][1]
            del groups[-2:]
            groups.append((sum(members) / len(members) - gap * (len(members) - 1) / 2, members))
    places = [start + gap * i for start, members in groups for i in range(len(members))]
    over = max(0.0, (places[-1] if places else 0.0) - 1.0)
    return [place - over for place in places]


def spikes(line: Line) -> list[int]:
    """Rounds after which its loss stands out above both neighbours."""
    xs, ys = line.after(0)
    room = SPIKE * (max(ys) - min(ys)) if ys else 0.0
    return [xs[i] for i in range(1, len(ys) - 1) if ys[i] - max(ys[i - 1], ys[i + 1]) > room]


def without_spikes(lines: Sequence[Line], first: int) -> list[float]:
    return [y for line in lines for x, y in line.points.items() if x >= first and x not in spikes(line)]


def mark_spikes(whole: Axes, end: Axes, lines: Sequence[Line], first: int) -> None:
    """Said where they are; where they are cut off, an arrow and the value. Of one round and colour the highest."""
    found: dict[tuple[int, str], list[Line]] = {}
    for line in lines:
        for x in spikes(line):
            found.setdefault((x, line.colour), []).append(line)
    for (x, colour), spiking in found.items():
        y, line = max((line.points[x], line) for line in spiking)
        who = line.short if len(spiking) == 1 else f"{len(spiking)} miners alone, up to"
        told: dict[str, Any] = {"fontsize": 7.5, "color": colour, "ha": "center"}
        whole.annotate(f"{who} {y:.2f}, for one round", (x, y), (0, 5), textcoords="offset points", **told)
        if x >= first and y > end.get_ylim()[1]:
            side = 0.0 if x == first else 0.5  # off the axis
            told |= {"ha": "center" if side else "left", "va": "top"}
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1, "relpos": (side, 1)}
            end.annotate(
                f"{who} {y:.2f}", (x, 1.0), (x, 0.9), xycoords=("data", "axes fraction"), **told,
                textcoords=("data", "axes fraction"), arrowprops=arrow,
            )  # fmt: skip


def tell_events(axes: Axes, summary: Summary) -> None:
    """A dotted line at each round in which something happened that the curves may show; what it was stands above."""
    told = events(summary)
    low, high = axes.get_ylim()
    if 0 < len(told) <= MOST_LABELS:  # room for the words above the curves
        axes.set_ylim(low, high + HEADROOM * (high - low))
    for x, text in told.items():
        axes.axvline(x, color=EVENT, lw=0.8, ls=":", zorder=0)
        if len(told) <= MOST_LABELS:
            axes.annotate(
                text, (x, 0.99), (-2, 0), xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90,
                color=EVENT, fontsize=7, va="top", ha="right",
            )  # fmt: skip
    if len(told) > MOST_LABELS:
        axes.plot([], [], color=EVENT, lw=0.8, ls=":", label="a node killed or joined, or a round discarded")


def events(summary: Summary) -> dict[float, str]:
    """Place in rounds -> what happened there."""
    found: dict[float, list[str]] = {}
    for fault in summary["faults"]:
        found.setdefault(fault["round"] + 0.5, []).append(f"{brief(fault['name'])} killed")
    for r in summary["rounds"]:
        if not r["applied"]:
            found.setdefault(r["index"] + 1, []).append("round discarded")
    for name, joined in summary["joined"].items():
        found.setdefault(joined["start_round"] + 0.25, []).append(f"{brief(name)} joined")
    for uid, index in first_fails(summary).items():
        found.setdefault(index + 0.75, []).append(
            f"{brief(nodes_of(summary).get(uid, uid)).partition(' (')[0]}: audit failed"
        )
    return {x: "\n".join(texts) for x, texts in sorted(found.items())}


def first_fails(summary: Summary) -> dict[str, int]:
    """uid -> round of its first failed audit."""
    found: dict[str, int] = {}
    for audit in summary["failed_audits"]:
        found[str(audit["uid"])] = min(audit["round"], found.get(str(audit["uid"]), audit["round"]))
    return found


def incentive(axes: Axes, summary: Summary) -> None:
    """By round; miners whose incentive is the same throughout share one line, named at its end."""
    miners = nodes_of(summary, "miner")
    values = {
        uid: {r["index"] + 1: 100 * (r["incentive"].get(uid) or 0.0) for r in summary["rounds"]} for uid in miners
    }
    groups = equal(values)
    labels: list[tuple[float, str, str]] = []
    for place, uids in enumerate(groups):
        points, colour = values[uids[0]], CYCLE[place % len(CYCLE)]
        style = DASHES[place % len(DASHES)] if len(groups) <= MOST_LABELS else "-"
        axes.plot(list(points), list(points.values()), marker="o", ms=3, lw=1.8, ls=style, color=colour)
        every = len(uids) == len(miners) > 1
        who = f"all {len(miners)} miners, each" if every else together(miners[uid] for uid in uids)
        labels += [(y, f"{who} {y:.1f} %", colour) for y in list(points.values())[-1:]]
    axes.set_ylabel("% of all")
    axes.set_ylim(0, 1.06 * max([1.0, *(y for points in values.values() for y in points.values())]))
    rounds_axis(axes)
    label_ends(axes, few(labels))


def equal(values: Mapping[str, Mapping[int, float]]) -> list[list[str]]:
    """Keys by value: those that differ nowhere by more than can be seen are one group."""
    most = max([1e-9, *(y for points in values.values() for y in points.values())])
    groups: list[list[str]] = []
    for uid, points in values.items():
        for group in groups:
            if all(abs(points[x] - values[group[0]][x]) <= SAME * most for x in points):
                group.append(uid)
                break
        else:
            groups.append([uid])
    return groups


def together(names: Iterable[str]) -> str:
    """The miners of one line."""
    listed = [brief(name) for name in names]
    if len(listed) == 1:
        return listed[0]
    short = [name.partition(" (")[0] for name in listed]
    return ", ".join(short) if len(listed) <= NAMED else f"{short[0]} and {len(listed) - 1} more"


def few(labels: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The highest, the lowest, and what lies evenly between."""
    ordered = sorted(labels)
    if len(ordered) <= MOST_LABELS:
        return ordered
    step = (len(ordered) - 1) / (MOST_LABELS - 1)
    return [ordered[round(i * step)] for i in range(MOST_LABELS)]


def rounds_axis(axes: Axes) -> None:
    """Whole numbers; of nothing no numbers at all."""
    axes.set_xlabel("after so many rounds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.03)
    first, last = axes.dataLim.intervalx
    if first > last:
        axes.set(xticks=(), yticks=())
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY)
    elif first == last:
        axes.set_xlim(first - 0.5, last + 0.5)
