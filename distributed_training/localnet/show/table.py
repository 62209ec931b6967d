"""The live table: pure functions from what the nodes said to something rich can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distributed_training.localnet.events import NodeView, RunView, shares_of
from distributed_training.localnet.names import spelled
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.clock import phase, round_at

DASH = "·"
WIDE = 112  # columns from which on there is room for the terms of the score
TERM_DIGITS = {"S": 4, "G": 3, "B": 3, "I": 3}
PHASE_STYLE = {"train": "green", "commit": "yellow", "average": "cyan", "map": "blue", "settle": "magenta"}


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the chain stands; None before block 0."""

    block: int | None
    elapsed_s: float
    rounds: int  # rounds to run


def render(view: RunView, manifest: RunManifest, clock: Clock, width: int = 120) -> RenderableType:
    """The whole picture for a terminal of `width` columns. Reads the view, changes nothing."""
    terms = TERM_DIGITS if width >= WIDE else {}
    body: list[RenderableType] = [header(view, manifest, clock), miners_table(view, terms), others_table(view)]
    history = loss_history(view)
    if history is not None:
        body.append(history)
    title = f"[bold]{manifest.name}[/] [dim]manifest {manifest.sha256[:12]}[/]"
    return Panel(Group(*body), title=title, title_align="left", border_style="dim", box=box.ROUNDED, padding=(0, 1))


def header(view: RunView, manifest: RunManifest, clock: Clock) -> Text:
    minutes, seconds = divmod(int(clock.elapsed_s), 60)
    time = Text(f"  {minutes}:{seconds:02d}", "dim")
    if clock.block is None:
        ready = sum(n.ready is not None for n in view.nodes.values())
        return Text.assemble((f"loading: {ready} of {len(view.nodes)} nodes ready", "bold"), time)
    index = round_at(manifest.timing, clock.block)
    if index is None:
        left = manifest.timing.first_block - clock.block
        return Text.assemble((f"block {clock.block}, round 0 begins in {left}", "bold"), time)
    if index >= clock.rounds:
        return Text.assemble((f"block {clock.block}, round {clock.rounds - 1} was the last, nodes stop", "bold"), time)
    round_ = manifest.round(index)
    name = phase(round_, clock.block).value
    return Text.assemble(
        (f"round {index} ", "bold"),
        (f"of 0 to {clock.rounds - 1}  ", "dim"),
        (f"{name:<8}", PHASE_STYLE[name]),
        bar(clock.block - round_.start_block, manifest),
        (f"  block {clock.block}", "dim"),
        time,
    )


def bar(done: int, manifest: RunManifest, width: int = 36) -> Text:
    """The round as a bar, coloured by phase, filled up to `done` blocks."""
    text = Text()
    round_ = manifest.round(0)
    for cell in range(width):
        block = (cell + 0.5) / width * manifest.timing.length
        style = PHASE_STYLE[phase(round_, round_.start_block + int(block)).value]
        text.append("━", style if block <= done else "grey30")
    return text


def miners_table(view: RunView, terms: Mapping[str, int]) -> Table:
    """`terms`: which terms of the score are shown, with how many digits."""
    table = _table("miner", "doing", "steps", "loss", "state", *terms)
    validators = view.of_role("validator")
    for validator in validators:
        table.add_column(f"weight\nby\nuid {validator.uid}", justify="right", no_wrap=True)
    table.add_column("incentive", justify="right", no_wrap=True)
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    cards = view.newest_cards()
    first = next(iter(cards.values()), {})
    newest = {v.name: shares_of(v.weights[-1]) if v.weights else {} for v in validators}
    for node in view.of_role("miner"):
        card = first.get(node.uid, {})
        row = [named(node), doing(node), steps(node), number(node.loss, 3), root(node)]
        row += [number(card.get(term), digits) for term, digits in terms.items()]
        row += [share(newest[v.name].get(node.uid)) for v in validators]
        table.add_row(*row, share(view.incentive.get(node.uid)), remark(node, card, newest), style=_row_style(node))
    return table


def others_table(view: RunView) -> Table:
    table = _table("node", "doing", "state", "loss")
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    for node in view.of_role("validator") + view.of_role("owner"):
        loss = node.losses[max(node.losses)] if node.losses else None
        cells = [named(node), doing(node), root(node), number(loss, 4)]
        table.add_row(*cells, note(node), style=_row_style(node))
    return table


def named(node: NodeView) -> str:
    name, _, uid = spelled(node.name, node.uid).partition(" ")
    return f"{name} [dim]{uid}[/]"


def loss_history(view: RunView) -> Text | None:
    losses = view.heldout()
    if not losses:
        return None
    text = Text("held-out loss  ", "dim")
    for place, loss in enumerate(losses.values()):
        text.append(" → " if place else "", "dim")
        text.append(f"{loss:.3f}", "bold green" if place == len(losses) - 1 else "")
    return text


def doing(node: NodeView) -> str:
    if node.killed:
        return "[bold red]killed[/]"
    if node.exit_code is not None:
        return "[green]done[/]" if node.exit_code == 0 else f"[bold red]ended, exit {node.exit_code}[/]"
    if node.ready is None:
        return "[dim]loading[/]"
    if not node.phase:
        return "[dim]ready[/]"
    return f"[{PHASE_STYLE.get(node.phase, 'white')}]{node.phase}[/] [dim]{node.round}[/]"


def steps(node: NodeView) -> str:
    if node.step is not None and node.phase == "train":
        return str(node.step + 1)
    done = node.trains.get(max(node.trains)) if node.trains else None
    return DASH if done is None else str(done.get("steps", DASH))


def root(node: NodeView) -> str:
    return f"[dim]{node.state_root[:8]}[/]" if node.state_root else DASH


def number(value: Any, digits: int) -> str:
    return DASH if not isinstance(value, int | float) else f"{value:.{digits}f}"


def share(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{100 * value:.1f}%" if value > 0 else "[red]0[/]"


def remark(node: NodeView, card: Mapping[str, Any], newest: Mapping[str, Mapping[int, float]]) -> str:
    """Why this miner earns nothing, or what troubles it; empty when all is well."""
    if card.get("reason"):
        return f"[red]{card['reason']}[/]"
    paid = any(row.get(node.uid, 0.0) > 0 for row in newest.values())
    if not paid and any(newest.values()):
        return f"[red]no weight yet[/] {card.get('note') or ''}"
    if node.trouble:
        return f"[yellow]{node.trouble}[/]"
    return f"[dim]{card.get('note') or waiting(node)}[/]"


def waiting(node: NodeView) -> str:
    return "not audited yet" if node.rounds else ""


def note(node: NodeView) -> str:
    if node.trouble:
        return f"[yellow]{node.trouble}[/]"
    if node.checkpoints:
        newest = node.checkpoints[-1]
        return f"[dim]{len(node.checkpoints)} checkpoints, newest before round {newest.get('round')}[/]"
    if node.audits:
        newest_round = max(key[0] for key in node.audits)
        verdicts = [str(e.get("verdict")) for (r, _), e in sorted(node.audits.items()) if r == newest_round]
        passed = verdicts.count("pass")
        return f"[dim]round {newest_round}: {passed} of {len(verdicts)} audits passed[/]"
    return ""


def _row_style(node: NodeView) -> str:
    return "red" if node.killed or node.exit_code not in (None, 0) else ""


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for name in columns:
        right = name not in ("miner", "node", "doing", "state")
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, min_width=6 if name == "node" else None
        )
    return table


def event_line(name: str, event: Mapping[str, Any], names: Mapping[int, str]) -> str | None:
    """One event as one plain line; None for those that would only make noise. names: of nodes, by uid."""
    e, what = event, event["event"]

    def who(uid: Any) -> str:
        return names.get(int(uid), f"uid {uid}")

    index = e.get("round")
    at = "" if index is None else "at the start: " if index < 0 else f"round {index}: "
    texts: dict[str, Any] = {
        "ready": lambda: f"ready, state {e['state_root'][:16]}",
        "train": lambda: (
            f"{at}{e['steps']} steps, {e['tokens']} tokens, loss {e['loss_first']:.3f} to "
            f"{e['loss_last']:.3f} in {e['seconds']:.1f} s"
        ),
        "round": lambda: (
            f"{at}{'applied' if e['applied'] else 'discarded, ' + str(e['reason'])}, work of "
            f"{_list([who(uid) for uid in e['included']])}, {len(e['counted'])} of {e['num_slices']} slices, "
            f"state {e['state_root'][:16]}"
        ),
        "evaluation": lambda: f"{at}held-out loss {e['heldout_loss']:.4f}",
        "audit": lambda: f"{at}audit of {who(e['target'])}: {e['verdict']}, depth {e['depth']}, {e['reason']}",
        "scores": lambda: f"{at}scores " + ", ".join(_card(who(uid), card) for uid, card in e["cards"].items()),
        "weights": lambda: (
            f"{at}weights in block {e['block']}: "
            + ", ".join(f"{who(uid)} {100 * w:.1f}%" for uid, w in e["weights"].items())
        ),
        "checkpoint": lambda: f"checkpoint of the state before round {index}: {e['path']}",
        "fault": lambda: f"{at}{e.get('what')}: {e.get('detail')}",
        "stopped": lambda: f"stopped: {e.get('reason')}",
        "killed": lambda: (
            f"{at}{e['name']} killed at {e['phase']}, pid {e['pid']}, block {e['block']}, "
            f"{e['bytes_in_flight']} bytes in flight"
        ),
        "restarted": lambda: f"{e['name']} started again, pid {e['pid']}; survivors: {_list(e['survivors'])}",
    }
    make = texts.get(what)
    if make is None:
        return None
    try:
        return f"{name:<12} {make()}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{name:<12} {what} event that cannot be read"


def _card(name: str, card: Mapping[str, Any]) -> str:
    why = f" ({card['reason']})" if card.get("reason") else ""
    return f"{name} {100 * card['weight']:.1f}%{why}"


def _list(values: Sequence[Any]) -> str:
    return ", ".join(str(v) for v in values) or "none"
