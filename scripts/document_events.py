"""Write docs/events.md: every event a node tells, from its record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from distributed_training.files import write_whole
from distributed_training.metrics.events import Record
from distributed_training.settings.arguments import Parser
from distributed_training.settings.entry import run_main

DESCRIPTION = """\
Write docs/events.md: every event a node tells, made of its record in distributed_training/metrics/events.py.
Run it after a change to a record; a test compares the two.
"""
EXAMPLES = """\
  python scripts/document_events.py
"""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "events.md"
HEAD = """\
# Events

What a node tells: one JSON object a line in RUN_DIR/nodes/HOTKEY/events.jsonl, and the same to every other sink.
`python scripts/document_events.py` writes this page, from the records in `distributed_training/metrics/events.py`.

Each event has these first: `time` (seconds since 1970, this machine's clock), `event` (its name), `role` (miner,
validator or owner) and `uid` of the node that tells it, and `round` (null where it belongs to none). Keys and digests
are hex; keys of maps are strings, as JSON has them; NaN and infinities are null. Events may gain fields.
"""


def page() -> str:
    return HEAD + "".join(_section(record) for record in get_args(Record))


def _section(record: type) -> str:
    about = " ".join((record.__doc__ or "").split())
    return f"\n## {record.__name__.lower()}\n\n{about}\n\n| field | type | what |\n|---|---|---|\n" + "".join(
        _rows(record)
    )


def _rows(record: type) -> Iterator[str]:
    hints = get_type_hints(record, include_extras=True)
    for item in fields(record):
        kind, what = get_args(hints[item.name])
        yield f"| `{item.name}` | {_named(kind)} | {what} |\n"


def _named(kind: Any) -> str:
    """A type as JSON has it."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    words = {int: "integer", float: "number", str: "string", bytes: "string", bool: "boolean", type(None): "null"}
    if kind in words:
        return words[kind]
    inner = [_named(arg) for arg in get_args(kind) if arg is not ...]
    if get_origin(kind) is tuple:
        return f"list of {inner[0]}"
    if len(inner) == 2 and "null" not in inner:
        return f"map to {inner[1]}"
    return " or ".join(inner) or "any"


def main() -> int:
    Parser(description=DESCRIPTION, examples=EXAMPLES).parse_args()
    write_whole(PAGE, page().encode())
    print(f"{PAGE.name}: {len(get_args(Record))} events")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
