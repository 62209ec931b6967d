"""What the journals say of a miner or a round: `python -m distributed_training.history --help`. Writes nothing."""

from __future__ import annotations

import csv
import json
import select
import sys
from collections.abc import Callable, Iterable, Sequence

from distributed_training.errors import ConfigError, on_one_line
from distributed_training.operator.history import COLUMNS, FIELDS, Row, books, read
from distributed_training.settings.arguments import Parser, folder, whole
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
List what the journals of nodes keep of one uid or of one round: how the rounds went, what validators saw of a miner and
how its audits ended, the share of their weights it got, faults, and the newest score cards. Nodes may be running.
"""
EXAMPLES = """\
  python -m distributed_training.history --run-dir runs/local --uid 5
  python -m distributed_training.history --run-dir runs/local --round 3 --csv
  python -m distributed_training.history --run-dir runs/local --uid 5 --follow
"""
POLL_S = 1.0


def parser() -> Parser:
    made = Parser(prog="python -m distributed_training.history", description=DESCRIPTION, examples=EXAMPLES)
    add = made.add_argument
    add("--run-dir", type=folder, metavar="DIR", required=True, help="folder of a run (all its nodes), or of one node")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--uid", type=whole(0, 65535, "a uid"), metavar="N", help="all that is told of it, by round")
    which.add_argument("--round", type=whole(0, 2**31 - 1, "a round"), metavar="R", help="all that is told of it")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="comma-separated values, with a line of names")
    add("--follow", action="store_true", help="go on with what the nodes write, until Ctrl-C")
    return made


def show_json(rows: Iterable[Row]) -> None:
    for row in rows:
        print(json.dumps(row))


def csv_writer() -> Callable[[Iterable[Row]], None]:
    made = csv.DictWriter(sys.stdout, COLUMNS, restval="", lineterminator="\n")
    made.writeheader()
    return made.writerows


def table(rows: Sequence[Row]) -> Callable[[Iterable[Row]], None]:
    """A line each. The columns are as wide as the first rows need."""
    name = max([7, *(len(row["node"]) for row in rows)])
    line = f"{{:>6}}  {{:<11}}  {{:<{name}}}  {{:>5}}  {{}}".format

    def show(rows: Iterable[Row]) -> None:
        for row in rows:
            head = ["-" if row[key] is None else str(row[key]) for key in ("round", "kind", "node", "uid")]
            print(line(*head, in_words(row)))

    print(line("round", "what", "told by", "uid", "").rstrip())
    return show


def in_words(row: Row) -> str:
    """What a row says besides its first columns, for a person. What was not measured is left out."""
    said = {key: row[key] for key in FIELDS[row["kind"]] if row[key] is not None and row[key] != ""}
    if row["kind"] == "weight":
        text = f"{100 * row['weight']:.2f} % in block {row['block']}"
    elif row["kind"] == "fault":
        text = f"{row['what']}: {row['detail']}"
    else:
        said.pop("applied", None)
        said |= {"state_root": said["state_root"][:16]} if "state_root" in said else {}
        first = [str(said.pop(key)) for key in ("verdict", "reason") if key in said]
        text = ", ".join([*first, *(f"{key} {_number(value)}" for key, value in said.items())])
    return on_one_line(text)


def _number(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def pause() -> None:
    """Raises BrokenPipeError when nobody reads what we write: without news we would never notice."""
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if watch.poll(1000 * POLL_S):
        raise BrokenPipeError


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    key, number = ("round", options.round) if options.uid is None else ("uid", options.uid)
    found = books(options.run_dir)
    rows = read(found, key, number)
    if not rows and not options.follow:
        other = "--round R lists who took part" if key == "uid" else "--uid N lists the rounds that are kept"
        raise ConfigError(f"nothing is told of {key} {number} in {len(found)} journals of {options.run_dir}; {other}")
    show = show_json if options.json else csv_writer() if options.csv else table(rows)
    show(rows)
    while options.follow:
        sys.stdout.flush()
        pause()
        show(read(found, key, number))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
