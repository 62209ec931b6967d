"""An outside observer: which node had settled which round in time, by a clock of its own.

    python -m distributed_training.localnet.judge.watcher RUN_DIR

It believes no node's clock. When a round ends follows from the chain's genesis time; that a node settled it is seen
when its events.jsonl has grown by the round's line; that it lives, from the pid in its lock file. RUN_DIR/watch.json
holds the verdict per round and node: "settled" (by s+L, where rounds overlap by s+Y+f, plus GRACE_S), "late" (lived all
the time and was not), "dead" (did not live all the time from s until then, and had not settled), "unseen" (settled
while the watcher itself was stopped, nobody knows whether in time), null (not over yet). It ends with SIGTERM.

While the whole machine stands still nobody can settle anything: a round that this falls into is due as much later. That
the machine did, and not the watcher alone, shows in the clock that stops with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_training.chain.local.genesis import chain_params
from distributed_training.errors import ConfigError
from distributed_training.localnet.judge.chain_view import genesis_time
from distributed_training.localnet.layout import RunPaths
from distributed_training.localnet.run.group import alive
from distributed_training.metrics.following import Follower
from distributed_training.protocol.manifest import load_manifest
from distributed_training.protocol.rules.clock import over
from distributed_training.protocol.sections import TimingSection
from distributed_training.settings.entry import run_main
from distributed_training.shutdown import stop_signals
from distributed_training.stillness import clocks

GRACE_S = 10.0
POLL_S = 0.2
RESULT = "watch.json"
BLIND_S = 5.0  # between two looks: longer is no busy machine any more, but a watcher or a machine that stood still
SETTLED, LATE, DEAD, UNSEEN = "settled", "late", "dead", "unseen"


@dataclass(frozen=True, slots=True)
class RoundTimes:
    """Unix times of a run's rounds."""

    timing: TimingSection
    genesis: float
    block_s: float

    def start(self, index: int) -> float:
        return self.genesis + self.block_s * (self.timing.first_block + index * self.timing.length)

    def over(self, index: int) -> float:
        """s+L; where rounds overlap and are settled later than that, s+Y+f."""
        return self.genesis + self.block_s * over(self.timing, index)

    def due(self, index: int) -> float:
        """When it is over, plus GRACE_S."""
        return self.over(index) + GRACE_S

    def round_at(self, now: float) -> int:
        """Index of the round that runs at `now`; -1 before round 0."""
        return max(-1, int((now - self.start(0)) // (self.block_s * self.timing.length)))


@dataclass(slots=True)
class Seen:
    """One node as it looked from outside: when it was first seen to have settled a round, and the look before that.

    `down`: intervals in which it did not live, the last one maybe open.
    """

    settled: dict[int, tuple[float, float]] = field(default_factory=dict)
    down: list[tuple[float, float | None]] = field(default_factory=list)

    def look(self, now: float, before: float, lives: bool) -> None:
        """`before`: the look before this one: it may have died just after that."""
        is_down = bool(self.down) and self.down[-1][1] is None
        if lives and is_down:
            self.down[-1] = (self.down[-1][0], now)
        elif not lives and not is_down:
            self.down.append((before, None))

    def was_down(self, start: float, end: float) -> bool:
        return any(a <= end and (b is None or b >= start) for a, b in self.down)


class Observer:
    """What was seen so far, and what follows from it. Times are the observer's own (Unix, seconds)."""

    def __init__(self, times: RoundTimes, began: float) -> None:
        self.times, self._began, self._last = times, began, began
        self._nodes: dict[str, Seen] = {}
        self._awake: float | None = None
        self.stood_still: list[tuple[float, float]] = []  # from, until: the whole machine
        self.longest_pause_s = 0.0  # between two looks of a machine that runs: the precision of everything said here

    def look(
        self, now: float, lives: Mapping[str, bool], settled: Iterable[tuple[str, int]], awake: float | None = None
    ) -> None:
        """`settled`: (node, round) of lines that are new since the last look. `awake`: a clock that stops while the
        machine stands still; None where there is none: then nobody knows whether it was the machine or the watcher.
        """
        for name, living in lives.items():
            if name not in self._nodes:  # whoever was not there before did not live before
                self._nodes[name] = Seen(down=[(float("-inf"), None)])
            self._nodes[name].look(now, self._last, living)
        for name, index in settled:
            self._nodes[name].settled.setdefault(index, (self._last, now))
        self._pause(now, awake)
        self._last, self._awake = now, awake

    def _pause(self, now: float, awake: float | None) -> None:
        passed = now - self._last
        ran = 0.0 if awake is None else passed if self._awake is None else awake - self._awake
        if passed - ran > BLIND_S:
            self.stood_still.append((now - passed + ran, now))
            passed = ran
        self.longest_pause_s = max(self.longest_pause_s, passed)

    def due(self, index: int) -> float:
        """As late as the time says in which the machine ran."""
        start, due = self.times.start(index), self.times.due(index)
        for begin, end in self.stood_still:
            if begin < due and end > start:
                due += end - max(begin, start)
        return due

    def verdict(self, name: str, index: int) -> str | None:
        node, due = self._nodes[name], self.due(index)
        before, seen = node.settled.get(index, (due + 1, due + 1))
        if seen <= due:
            return SETTLED
        if before <= due and seen - before > BLIND_S:
            return UNSEEN
        if node.was_down(self.times.start(index), min(due, self._last)):
            return DEAD
        return LATE if self._last > due else None

    def rounds(self) -> dict[int, dict[str, Any]]:
        """Every round that ran while it looked: when it ended, who had settled it and how long after the end."""
        times = self.times
        first, last = max(0, times.round_at(self._began)), times.round_at(self._last)
        found: dict[int, dict[str, Any]] = {}
        for index in range(first, last + 1):
            end = times.over(index)
            after = {n: round(s.settled[index][1] - end, 2) for n, s in self._nodes.items() if index in s.settled}
            found[index] = {
                "end": end,
                "verdicts": {name: self.verdict(name, index) for name in self._nodes},
                "after_end_s": {name: after.get(name) for name in self._nodes},
            }
        return found


class Watcher:
    """An observer with eyes: files and process ids of a run directory."""

    def __init__(self, paths: RunPaths, times: RoundTimes) -> None:
        self._paths, self._followers = paths, dict[str, Follower]()
        self._former = _former(paths)
        began = time.time()
        self._interrupted = _under_way(self._former["rounds"], times.round_at(began))
        self.observer = Observer(times, began)

    def look(self) -> None:
        names = sorted(p.name for p in (self._paths.root / "nodes").iterdir() if p.is_dir())
        fresh: list[tuple[str, int]] = []
        for name in names:
            follower = self._followers.setdefault(name, Follower(self._paths.node(name) / "events.jsonl"))
            fresh += [(name, e["round"]) for e in follower.read() if e["event"] == "round" and e["round"] is not None]
        lives = {name: lock_holder_lives(self._paths.node(name) / "lock") for name in names}
        now, awake = clocks()
        self.observer.look(now, lives, fresh, awake)

    def write(self) -> None:
        """Rounds of an earlier part of a resumed run are kept; the one in which it was stopped is named."""
        interrupted = [*self._former["interrupted"], *([] if self._interrupted is None else [self._interrupted])]
        own = {str(index): row for index, row in self.observer.rounds().items()}
        document = {
            "grace_s": GRACE_S,
            "longest_pause_s": max(self._former["longest_pause_s"], round(self.observer.longest_pause_s, 2)),
            "interrupted": interrupted,
            "stood_still": [*self._former["stood_still"], *self._stood_still()],
            "rounds": self._former["rounds"] | own,
        }
        path = self._paths.root / RESULT
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(document) + "\n")
        partial.replace(path)

    def _stood_still(self) -> list[dict[str, Any]]:
        """When the whole machine did: the round it began in, and for how long."""
        round_at = self.observer.times.round_at
        return [{"round": round_at(a), "seconds": round(b - a, 1)} for a, b in self.observer.stood_still]


def _former(paths: RunPaths) -> dict[str, Any]:
    try:
        return json.loads((paths.root / RESULT).read_text())
    except (OSError, ValueError):
        return {"rounds": {}, "interrupted": [], "stood_still": [], "longest_pause_s": 0.0}


def _under_way(former: Mapping[str, Any], index: int) -> int | None:
    """The round in which a resumed run goes on, if it had not been settled by everybody when it was stopped."""
    before = former.get(str(index), {"verdicts": {}})["verdicts"].values()
    return index if former and index >= 0 and not (before and set(before) == {SETTLED}) else None


def lock_holder_lives(lock: Path) -> bool:
    """Does the process whose pid stands in a node's lock file run?"""
    try:
        text = lock.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return False
    return text.isdigit() and alive(int(text))


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        raise ConfigError("expected RUN_DIR")
    paths = RunPaths(Path(argv[0]).absolute())
    stop: list[int] = []
    for wanted in stop_signals():
        signal.signal(wanted, lambda number, frame: stop.append(number))
    parent, genesis = os.getppid(), None
    while (genesis := genesis_time(paths)) is None and not stop and os.getppid() == parent:
        time.sleep(POLL_S)
    if genesis is None:
        return 0
    times = RoundTimes(load_manifest(paths.manifest).timing, genesis, chain_params(paths.chain).block_s)
    watcher, written = Watcher(paths, times), 0.0
    while not stop and os.getppid() == parent:
        watcher.look()
        if time.monotonic() - written > 1.0:
            watcher.write()
            written = time.monotonic()
        time.sleep(POLL_S)
    watcher.look()
    watcher.write()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:])))
