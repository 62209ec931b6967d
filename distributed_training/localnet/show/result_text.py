"""The summary as the last lines a user sees (rich markup)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from distributed_training.localnet.judge.facts import nobody_judged
from distributed_training.localnet.judge.fault_checks import stood_still
from distributed_training.localnet.names import nodes_of

MARKS = {True: "[green]ok  [/]", False: "[bold red]FAIL[/]", None: "[yellow]-   [/]"}


def result_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = ["", *loss_lines(summary), "", *pay_lines(summary), ""]
    for name, ok in summary["checks"].items():
        lines.append(f"  {MARKS[ok]} {name:<24} [dim]{escape(summary['details'].get(name, ''))}[/]")
    failed = [name for name, ok in summary["checks"].items() if ok is False]
    lines += ["", *(f"[bold yellow]{escape(line)}[/]" for line in stood_still(summary))]
    if failed:
        lines.append(f"[bold red]{len(failed)} of {len(summary['checks'])} checks failed:[/] {', '.join(failed)}")
    else:
        lines.append(f"[bold green]{checks_held(summary)}[/]")
    return lines


def checks_held(summary: Mapping[str, Any]) -> str:
    """Of a run in which none failed."""
    held = sum(ok is True for ok in summary["checks"].values())
    left = len(summary["checks"]) - held
    return f"all {held} checks held" + (f", {left} not compared" if left else "")


def loss_lines(summary: Mapping[str, Any]) -> list[str]:
    """Held-out loss together, alone, and of one worker on everything."""
    names = nodes_of(summary)
    solo = {names[uid]: loss for uid, loss in summary["solo_heldout_loss"].items() if loss is not None}
    rows = [
        ("at the start", summary["initial_heldout_loss"]),
        ("together, averaged peer to peer", summary["final_heldout_loss"]),
        ("alone, mean of the miners", sum(solo.values()) / len(solo) if solo else None),
    ]
    if solo:
        best = min(solo, key=lambda name: solo[name])
        rows.append((f"alone, best: {best}", solo[best]))
    rows.append(("one worker on all tokens", summary["union_heldout_loss"]))
    shown = [f"  {what:<36}{'not measured' if loss is None else f'{loss:.4f}'}" for what, loss in rows]
    return ["[bold]held-out loss[/] (nats per token)", *shown]


def pay_lines(summary: Mapping[str, Any]) -> list[str]:
    """What each miner did and got."""
    lines = ["[bold]miners[/]                         steps   incentive   why not more"]
    names = {called.partition(" (")[0]: (uid, called) for uid, called in nodes_of(summary, "miner").items()}
    for name, (uid, called) in names.items():
        works = [r["nodes"][name] for r in summary["rounds"] if r["nodes"].get(name) is not None]
        steps = sum(w["steps"] or 0 for w in works)
        share = summary["final"]["incentive"].get(uid)
        paid = "not measured" if share is None else "not yet" if nobody_judged(summary) else f"{100 * share:.2f} %"
        cards = [r["scores"][uid] for r in summary["rounds"] if uid in r["scores"]]
        why = (cards[-1].get("reason") or "") if cards else "" if nobody_judged(summary) else "never scored"
        lines.append(f"  {escape(called):<29}{steps:>7}{paid:>12}   {escape(why)}")
    return lines
