"""Drives one faults run: starts saboteurs in time, wakes the frozen, retires them, and watches from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.fault_cells import Trial, schedule
from benchmarks.fault_subnet import FaultSubnet
from distributed_training.chain.local.genesis import start_clock
from distributed_training.errors import ConfigError
from distributed_training.localnet.judge.chain_view import genesis_time
from distributed_training.localnet.judge.watcher import SETTLED, RoundTimes, Watcher
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.metrics.following import Follower

POLL_S = 0.1
LEAD_ROUNDS = 4  # before its fault's round a saboteur is started: it loads, joins, is paid once and so reduces
LEAD_WHEN_BUSY = 5  # rounds, where processes take half a minute to start
BUSY = 2.5  # load per core
READY_S = 240.0
FINISH_ROUNDS = 1  # after the last fault: audits, and those who come back
MAX_REPEATS = 2
SPARE_HOTKEYS = 10  # for cells whose fault did not come about the first time

Say = Callable[[str], None]


@dataclass(slots=True)
class Course:
    """What became of one trial, as seen from outside."""

    trial: Trial
    started: bool = False
    retired: bool = False
    pid: int | None = None
    injected: dict[str, Any] | None = None  # its own durable event
    seen_at: float | None = None  # when the outside saw that event
    stopped: bool = False  # its process was seen in state T
    woken: bool = False
    repeated: bool = False  # its cell was tried again, or given up
    exit_code: int | None = None
    logs_from: dict[str, int] = field(default_factory=dict)  # honest node -> length of its log at the fault
    logs_to: dict[str, int] = field(default_factory=dict)


def lead_rounds() -> int:
    return LEAD_WHEN_BUSY if os.getloadavg()[0] > BUSY * (os.cpu_count() or 1) else LEAD_ROUNDS


class FaultRun:
    """Use `run` once. Every loop ends by the clock."""

    def __init__(self, subnet: FaultSubnet, trials: Sequence[Trial], processes: NodeProcesses, say: Say) -> None:
        self._subnet, self._processes, self._say = subnet, processes, say
        self.courses = [Course(trial) for trial in trials]
        self._followers: dict[str, Follower] = {}
        self._rounds = 1 << 16
        self.times: RoundTimes | None = None
        self.watcher: Watcher | None = None

    def run(self) -> None:
        self._start_honest()
        start_clock(self._subnet.paths.chain)
        genesis = genesis_time(self._subnet.paths)
        assert genesis is not None
        self.times = RoundTimes(self._subnet.manifest.timing, genesis, self._subnet.block_s)
        self.watcher = Watcher(self._subnet.paths, self.times)
        try:
            self._follow()
        except KeyboardInterrupt:
            self._say("stopped early: judging the rounds there were")
            self.courses = [course for course in self.courses if course.retired]
        self.watcher.look()
        self.watcher.write()

    def _follow(self) -> None:
        assert self.watcher is not None
        shown = -1
        while time.time() < self._end() and not self._finished():
            self.watcher.look()
            for course in self.courses:
                self._tend(course)
            self._repeat_missed()
            self._check_honest()
            shown = self._progress(shown)
            time.sleep(POLL_S)

    # --- processes -------------------------------------------------------------------------------

    def _start_honest(self) -> None:
        for spec in self._subnet.honest:
            log = self._subnet.paths.node(spec.name) / "log.txt"
            self._processes.start(spec.name, self._subnet.command(spec, None, self._rounds), log)
        early = [c for c in self.courses if c.trial.round <= lead_rounds()]
        for course in early:
            self._start(course)
        waiting = {spec.name for spec in self._subnet.honest} | {c.trial.name for c in early}
        until = time.monotonic() + READY_S
        while waiting:
            self._check_honest()
            if time.monotonic() > until:
                raise ConfigError(f"not ready within {READY_S:.0f} s: {', '.join(sorted(waiting))}")
            waiting -= {name for name in waiting if any(e["event"] == "ready" for e in self._events(name))}
            time.sleep(POLL_S)
        self._say(f"{len(self._subnet.honest)} honest nodes and {len(early)} saboteurs are ready")

    def _start(self, course: Course) -> None:
        spec = self._subnet.saboteurs[course.trial.name]
        command = self._subnet.command(spec, course.trial, self._rounds)
        self._processes.start(spec.name, command, self._subnet.paths.node(spec.name) / "log.txt")
        course.started, course.pid = True, self._processes.pid(spec.name)

    def _check_honest(self) -> None:
        """An honest node that ends is a failure nobody should wait for."""
        honest = {spec.name for spec in self._subnet.honest}
        for ended in self._processes.newly_ended():
            if ended.name in honest:
                raise ConfigError(f"{ended.name} ended with {ended.code}:\n" + "\n".join(ended.log_tail))

    # --- one trial -------------------------------------------------------------------------------

    def _tend(self, course: Course) -> None:
        assert self.times is not None
        now, trial = time.time(), course.trial
        if course.retired:
            return
        if not course.started:
            if now >= self.times.start(trial.round - lead_rounds()) and self._free(course):
                self._start(course)
            return
        for event in self._events(trial.name):
            if event["event"] == "fault_injected":
                self._injected(course, event, now)
        self._look_at(course)
        frozen = trial.cell.fault == "freeze" and course.seen_at is not None and not course.woken
        if frozen and now >= (course.seen_at or now) + self._subnet.round_s:
            self._wake(course)
        if now >= self.times.start(trial.round + 2):
            self._retire(course)

    def _free(self, course: Course) -> bool:
        """The validator slot is one hotkey: its former process must be gone."""
        return not any(c.started and not c.retired and c.trial.name == course.trial.name for c in self.courses)

    def _injected(self, course: Course, event: dict[str, Any], now: float) -> None:
        course.injected, course.seen_at = event, now
        course.logs_from = self._log_sizes()

    def _look_at(self, course: Course) -> None:
        code = self._processes.exit_codes().get(course.trial.name)
        course.exit_code = code if course.exit_code is None else course.exit_code
        if course.injected is None or course.stopped or course.pid is None or code is not None:
            return
        try:
            course.stopped = psutil.Process(course.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            pass

    def _wake(self, course: Course) -> None:
        course.woken = True
        if course.pid is not None and course.exit_code is None:
            try:
                os.killpg(course.pid, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def _retire(self, course: Course) -> None:
        course.retired, course.logs_to = True, self._log_sizes()
        if course.exit_code is None:
            self._wake(course)
            self._processes.kill(course.trial.name)

    def _repeat_missed(self) -> None:
        """A cell whose fault did not come about is tried again at the end, with a fresh hotkey, MAX_REPEATS times.

        Mostly its saboteur was ready too late to be a reducer in that round.
        """
        for course in [c for c in self.courses if c.retired and c.injected is None and not c.repeated]:
            course.repeated = True
            if sum(c.trial.cell == course.trial.cell for c in self.courses) > MAX_REPEATS:
                continue
            last = max(c.trial.round for c in self.courses)
            self._say(f"{course.trial.cell} did not come about in round {course.trial.round}: once more")
            now = self.times.round_at(time.time()) if self.times else 0
            trial = schedule([course.trial.cell], max(last + 1, now + LEAD_WHEN_BUSY + 1), self._spare())[0]
            if trial.name in self._subnet.saboteurs:
                self.courses.append(Course(trial))

    def _spare(self) -> int:
        return sum(not c.trial.cell.validator for c in self.courses)

    # --- what is seen ----------------------------------------------------------------------------

    def _events(self, name: str) -> list[dict[str, Any]]:
        path = self._subnet.paths.node(name) / "events.jsonl"
        return list(self._followers.setdefault(name, Follower(path)).read())

    def _log_sizes(self) -> dict[str, int]:
        logs = {spec.name: self._subnet.paths.node(spec.name) / "log.txt" for spec in self._subnet.honest}
        return {name: log.stat().st_size for name, log in logs.items() if log.exists()}

    def _end(self) -> float:
        assert self.times is not None
        return self.times.due(self._last_round())

    def _finished(self) -> bool:
        """Nothing left to see: every saboteur is retired and every honest node has settled the last round."""
        assert self.watcher is not None
        if not all(course.retired for course in self.courses):
            return False
        last, observer = self._last_round(), self.watcher.observer
        return all(observer.verdict(spec.name, last) == SETTLED for spec in self._subnet.honest)

    def _last_round(self) -> int:
        return max(c.trial.round for c in self.courses) + FINISH_ROUNDS

    def _progress(self, shown: int) -> int:
        """One line when a round has begun: what happened in the one before."""
        assert self.times is not None
        index = self.times.round_at(time.time())
        if index <= shown:
            return shown
        for course in self.courses:
            if course.trial.round == index - 1:
                event = course.injected
                at = "did not come about" if event is None else f"at block {event['block']}, pid {event['pid']}"
                self._say(f"round {index - 1}: {course.trial.cell} {at}")
        return index
