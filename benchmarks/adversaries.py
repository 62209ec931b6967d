"""What every cheat earns beside honest work, by the real rules: a table, a picture, and what is more than it may be."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.adversaries_honest import failures_of_the_honest, rows_of_churn, rows_of_fees, rows_of_newcomers
from benchmarks.adversaries_policies import CLASS_A, class_b, tails
from benchmarks.adversaries_rows import (
    LENGTHS,
    STEPS,
    Row,
    Size,
    failures,
    row,
    rows_of_class_a,
    rows_of_class_b,
    rows_of_the_honest,
)
from benchmarks.collusion import collusion_rows, failures_of
from benchmarks.table import cell
from distributed_training.settings.arguments import new_file, whole

DESCRIPTION = """\
Miners as policies under the nodes' own rules: audit depths drawn from beacons, folds, condemnations, weights, and pay
as the chain's consensus makes it of one validator's or five validators' rows, over 240 rounds. No model is trained: a
dishonest step that is replayed is a hard failure. Cheats come to incumbents whose work has vested; tails also to the
first round of a run. The rows "best policy" are exact, over all policies of an identity that costs nothing.

  detected_after_rounds  mean age of an identity when it is found out
  share_of_honest        pay beside an honest miner's of the same rounds; class a: from the third audited round on
  pay_per_compute        the same over the work that was done; error: its standard error
  harm_to_honest         what is paid above the work, or an honest miner loses
  class                  a work not done, b partly done, c collusion (a search), honest, market

With --nodes every attack of adversaries/ runs too, as real nodes that train, in virtual time (minutes).

  python scripts/bench.py adversaries --plot docs/incentives.png --markdown docs/incentives.md
"""
BEGIN, END = "<!-- begin: scripts/bench.py adversaries -->", "<!-- end -->"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(30, 10_000, "rounds"), default=240, metavar="N", help="default 240")
    parser.add_argument(
        "--cheats", type=whole(2, 1000, "cheats"), default=24, metavar="N", help="of each policy at once; default 24"
    )
    parser.add_argument("--seeds", type=whole(2, 100, "seeds"), default=6, metavar="N", help="default 6")
    parser.add_argument("--search", type=whole(1, 100_000, "steps"), default=600, metavar="N", help="of class c; 600")
    parser.add_argument("--nodes", action="store_true", help="and every attack as real nodes, in virtual time")
    parser.add_argument("--plot", type=new_file, metavar="FILE", help="draw pay per compute into this file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="renew the table in this document")


def run(args: argparse.Namespace) -> dict[str, Any]:
    size = Size(args.rounds, args.cheats, args.seeds)
    rows = [*rows_of_class_a(size), *rows_of_class_b(size)]
    found: list[str] = []
    for searched in collusion_rows(1, steps=args.search):
        found += failures_of(searched)
        rows.append(of_collusion(searched))
    rows += [*rows_of_the_honest(size), *rows_of_churn(args.seeds), *rows_of_newcomers(), *rows_of_fees(args.seeds)]
    if args.nodes:
        from benchmarks.adversaries_swarm import swarm_rows  # it loads torch

        for one in swarm_rows():
            found += one.pop("failures")
            rows.append(one | {"group": f"{one['group']}, real nodes", "error": None})
    if args.plot is not None:
        from benchmarks.adversaries_plot import draw  # matplotlib is needed for this alone

        draw(args.plot, rows)
    if args.markdown is not None:
        renew(args.markdown, rows)
    return {"name": "adversaries", "rows": rows, "failures": [*failures(rows), *failures_of_the_honest(rows), *found]}


def of_collusion(searched: Mapping[str, Any]) -> Row:
    """A row of the search in this table's form."""
    share = searched["share_of_fair"]
    return row(
        "colluding reducers leave out, withhold, claim: the best pattern found"
        if searched["by"] == "share"
        else "colluding reducers take from one honest miner: the worst pattern found",
        "c",
        str(searched["group"]),
        share=share,
        pay=share,
        harm=searched["harm_to_honest"],
    )


def attacks() -> Iterator[str]:
    """Names of the rows of classes a and b, in order, without playing them."""
    yield from CLASS_A
    for steps in LENGTHS:
        yield from tails(steps)
    yield from class_b(STEPS)


def markdown(rows: Iterable[Row]) -> list[str]:
    """One line an attack: the worst of its groups."""
    columns = ("attack", "class", "found after rounds", "of an honest miner's pay", "pay per work", "taken from others")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    by_attack: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        group = one["group"] if one["class"] in ("c", "market", "honest") or one["group"].endswith("nodes") else ""
        by_attack.setdefault((one["attack"], group), []).append(one)
    for (attack, group), same in by_attack.items():
        values = (
            (_worst(same, "detected_after_rounds", max), 1),
            (_worst(same, "share_of_honest", max), 2),
            (_worst(same, "pay_per_compute", max), 2),
            (_worst(same, "harm_to_honest", max), 3),
        )
        shown = (cell(None if value is None else round(value, digits)) for value, digits in values)
        lines.append(f"| {attack}{f' ({group})' * bool(group)} | {same[0]['class']} | {' | '.join(shown)} |")
    return lines


def _worst(rows: Sequence[Row], column: str, of: Callable[[list[float]], float]) -> float | None:
    values = [r[column] for r in rows if r[column] is not None]
    return of(values) if values else None


def renew(path: Path, rows: Iterable[Row]) -> None:
    """Put the table between the two marks. Raises ValueError for a document that lacks them."""
    text = path.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text("\n".join((text[:begin], "", *markdown(rows), "", text[end:])))
