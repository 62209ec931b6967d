"""Files of events, followed and folded; and what one round was, read again from where it stands in them."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from distributed_training.dashboard.fold import MAX_ROUND, RunFold
from distributed_training.dashboard.values import number
from distributed_training.metrics.following import DEMO, Follower, event_of, lines_of

MAX_FILES = 2048
MAX_ROUND_BYTES = 8 << 20  # of a file, for one round
AFTER = 2  # rounds behind it that may still tell of a round: its audits come late

NamedEvent = tuple[str, dict[str, Any]]


class EventFile:
    """One file of one node (`name`), or of many: then each event names its `node`. Places of rounds are remembered."""

    def __init__(self, path: Path, name: str | None) -> None:
        self.path, self._name = path, name
        self.only: str | None = None  # events of this node alone count: the others are in files of their own
        self._follower = Follower(path)
        self._rounds, self._places = array("q"), array("q")

    @property
    def bad_lines(self) -> int:
        return self._follower.bad_lines

    def poll(self, fold: RunFold) -> bool:
        """Fold what is new, a bounded part of it. False: there was nothing."""
        before = self._follower.offset
        for place, event in self._follower.placed():
            self._mark(event.get("round"), place)
            name = self._node(event)
            if name is not None:
                fold.apply(name, event)
        return self._follower.offset != before

    def of_round(self, index: int) -> list[NamedEvent]:
        """Events of one round, as far as MAX_ROUND_BYTES go."""
        start = self._places[max(0, bisect_right(self._rounds, index) - 1)] if self._places else 0
        after = bisect_left(self._rounds, index + AFTER + 1)
        end = self._places[after] if after < len(self._places) else self._follower.offset
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(min(end - start, MAX_ROUND_BYTES))
        except OSError:
            return []
        found: list[NamedEvent] = []
        wanted = re.compile(rb'"round": ?%d\b' % index)
        for _, line in lines_of(data):
            event = event_of(line) if wanted.search(line) else None
            name = None if event is None else self._node(event)
            if event is not None and name is not None and event.get("round") == index:
                found.append((name, event))
        return found

    def _node(self, event: dict[str, Any]) -> str | None:
        name = str(event.get("node") or self._name or f"{event.get('role')} {event.get('uid')}")
        return name if self.only in (None, name) else None

    def _mark(self, index: Any, place: int) -> None:
        """Where a round begins. They only rise: whatever is told of an earlier one later on is AFTER it."""
        if self._places and place < self._places[-1]:  # the file was begun anew
            self._rounds, self._places = array("q"), array("q")
        if not isinstance(index, int) or not (self._rounds[-1] if self._rounds else -1) < index < MAX_ROUND:
            return
        self._rounds.append(index)
        self._places.append(place)


class EventFiles:
    """All files of a run, folded into one state. `of_round` is called with the lock held."""

    def __init__(self, run_dir: Path | None, files: Sequence[Path] = (), *, public: bool = False) -> None:
        """public: nodes are not named after their folders, which are those of wallets' hotkeys; but for a demo's."""
        self.fold, self._run_dir, self._public = RunFold(), run_dir, public
        self._files = {path: EventFile(path, self._name_of(path)) for path in files}

    def read(self, lock: Lock) -> bool:
        """A part of what is new, of each file, each under the lock. False: there was nothing."""
        self._look()
        found = False
        for file in tuple(self._files.values()):
            with lock:
                found = file.poll(self.fold) or found
        return found

    def of_round(self, index: int) -> list[NamedEvent]:
        """All that is told of a round, in the order of time."""
        found = [event for file in tuple(self._files.values()) for event in file.of_round(index)]
        return sorted(found, key=lambda item: number(item[1].get("time")) or 0.0)

    @property
    def bad_lines(self) -> int:
        return sum(file.bad_lines for file in tuple(self._files.values()))

    def _look(self) -> None:
        """For files that came since: nodes that join. What the nodes say is read from their own files."""
        if self._run_dir is None:
            return
        own = sorted(self._run_dir.glob("nodes/*/events.jsonl"))[:MAX_FILES]
        merged = self._run_dir / "events.jsonl"
        for path in own:
            if path not in self._files:
                self._files[path] = EventFile(path, self._name_of(path))
        if merged not in self._files and merged.is_file():
            self._files[merged] = EventFile(merged, None)
        if own and merged in self._files:
            self._files[merged].only = DEMO

    def _name_of(self, path: Path) -> str | None:
        demo = self._run_dir is not None and (self._run_dir / "run.json").is_file()
        return _node_of(path) if demo or not self._public else None


def _node_of(path: Path) -> str | None:
    """A node's name is that of its folder; a file with another name than a node's says of whom it tells, or nobody."""
    return path.parent.name if path.name == "events.jsonl" and path.parent.parent.name == "nodes" else None
