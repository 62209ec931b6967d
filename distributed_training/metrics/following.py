"""A file of events that grows, read as far as it has come: whole lines only, bounded, from any place on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_READ_BYTES = 1 << 20  # a call
DEMO = "demo"  # the node that events of the demo itself name, in the merged file of a run
MAX_LINE_BYTES = 1 << 18  # a longer line is no event of ours and is skipped


class Follower:
    """New whole lines of one growing JSON-lines file. Bounded per call; anything that is no event is counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        self.bad_lines = 0

    def read(self) -> list[dict[str, Any]]:
        """The events that are new, at most MAX_READ_BYTES of them; a file that became shorter is read again."""
        return [event for _, event in self.placed()]

    def placed(self) -> list[tuple[int, dict[str, Any]]]:
        """`read`, each event with the place of its line in the file."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                data = file.read(MAX_READ_BYTES)
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        if end == 0:  # no whole line yet; one that is too long is skipped piece by piece
            if len(data) > MAX_LINE_BYTES:
                self.offset += len(data)
                self.bad_lines += 1
            return []
        start, self.offset = self.offset, self.offset + end
        found: list[tuple[int, dict[str, Any]]] = []
        for place, line in lines_of(data[:end], start):
            event = event_of(line)
            if event is None:
                self.bad_lines += 1
            else:
                found.append((place, event))
        return found


def lines_of(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(place, line) of every line of `data`, which lies at `start` in its file."""
    for line in data.splitlines(keepends=True):
        yield start, line
        start += len(line)


def event_of(line: bytes) -> dict[str, Any] | None:
    """One line as an event, also as the simulator writes it: [seconds, node, event]. None for anything else."""
    try:
        event = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        return None
    if isinstance(event, list) and len(event) == 3 and isinstance(event[2], dict):
        event = {"time": event[0], "node": event[1], **event[2]}
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event if isinstance(event.get("round"), int | None) else None
