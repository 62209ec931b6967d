"""Runs a node as its child and, at the border of a round, in the next signed version; judges that one, and returns.

One thread, no waiting: `step` looks at the child, at what was asked of us and at the clock, and acts. What has to
survive a kill -9 is in state.json before the act that it announces.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from auto_update.child import Child, end_left_behind, ended, left_behind
from auto_update.memory import Memory
from auto_update.node import Base, ask_where, command, environment_of, keep_journal, look, return_journal
from auto_update.notify import Relay
from auto_update.prepare import Home, clear
from auto_update.state import Candidate, point, write_whole
from auto_update.tags import delay_s
from auto_update.trial import Patience, judge, moved
from auto_update.trouble import NoUpdate

WRONG, OPERATORS = 2, (3, 5)  # exit codes of a node: wrong input; what no other version mends
BORDER_ROUNDS, BORDER_S = 3, 120.0  # how long a node may take to leave between two rounds, before it is told to stop
AGAIN_S = 5.0  # between two starts on trial
LATER_S = 3600.0  # until a switch is tried again that this machine's trouble kept from happening


@dataclass(frozen=True, slots=True)
class Paces:
    """Seconds, and how patient a trial is."""

    look_s: float
    window_s: float
    first_look_s: float = 60.0
    border_s: float = BORDER_S
    again_s: float = AGAIN_S
    patience: Patience = field(default_factory=Patience)
    clock: Callable[[], float] = time.time  # Unix seconds


class Launcher:
    """One node. `words`: its role and settings. `start_look` begins a look as a process that leaves found.json."""

    def __init__(
        self, home: Home, base: Base, words: list[str], paces: Paces, start_look: Callable[[], Child], own: Path
    ) -> None:
        """own: the version whose launcher this is. Raises Wrong, with the node's own line, for wrong settings."""
        self._home, self._base, self._words, self._paces = home, base, words, paces
        self._start_look, self._own = start_look, own
        self._where = ask_where(own, base.python_of(own), words)
        self.memory = Memory(home.node(self._where.name), json_lines=self._where.json_lines)
        self._link = self.memory.folder / "current"
        self._relay = Relay()
        self._child: Child | None = None
        self._looking: Child | None = None
        self._began: float | None = None  # Unix seconds of this trial; None: not yet, or begun by another launcher
        self._leave_by = self._start_at = self._not_before = 0.0
        self._next_look = paces.clock() + min(paces.first_look_s, paces.look_s)
        self._left = False  # the child was asked to leave for another version
        self._stopping = False
        self._told = ""  # of looks
        self.successor: Path | None = None  # the version whose launcher is to take over now

    @property
    def current(self) -> Path:
        """Folder of the running version."""
        target = self._link.readlink() if self._link.is_symlink() else self._base.path
        return target if target.is_dir() else self._base.path

    def node_dir(self) -> Path | None:
        """Of the run it is in, by the lock that its process holds; else the one used last."""
        folders, pid = self._where.node_dirs(), str(self._child.pid if self._child else -1)
        mine = [path for path in folders if (path / "lock").read_text("utf-8", "replace").split("\n")[0] == pid]
        return next(iter(mine or folders), None)

    def say(self, line: str) -> None:
        self.memory.say(line, self.node_dir())

    # --- the loop

    def recover(self) -> None:
        """After the start: what a launcher before us left under way."""
        for node in self._where.node_dirs():
            if (pid := left_behind(node, self.memory.folder / "child")) is not None:
                self.say(f"ending the node that a launcher which was killed left behind (process {pid})")
                end_left_behind(pid)
        if self.memory.state.phase == "back":
            self._put_back()
        self._finish_switch()
        self.successor = self._next_launcher()

    def step(self) -> int | None:
        """Once around. The exit code when all is over, else None."""
        now, phase = self._paces.clock(), self.memory.state.phase
        self._relay.pass_on(alone=phase in ("switching", "trial", "back"), stopping=self._stopping)
        try:
            code = None if self._child is None else self._child.poll()
            if code is not None:
                self._child = None
                if (end := self._ended(code, now)) is not None:
                    return end
            if not self._stopping and self.successor is None:
                self._look(now)
                self._go_on(now)
                if self._child is None and self.successor is None and now >= self._start_at:
                    self._start(now)
            self.memory.no_trouble()
        except OSError as error:
            self._not_before = now + LATER_S
            self.memory.trouble(error)
        return 0 if self._stopping and self._child is None else None

    def stop(self, number: int) -> None:
        """A signal of a person or a supervisor: the node's, and then our end."""
        self._stopping = True
        if self._child is not None:
            if number == signal.SIGUSR1:
                self._child.tell(number)
            else:
                self._child.stop(number=number)

    def close(self) -> None:
        for child, limit_s in ((self._child, 20.0), (self._looking, 3.0)):
            if child is not None:
                child.stop(limit_s)
                child.wait()
        self._relay.close()

    # --- the node

    def _start(self, now: float) -> None:
        version, state = self.current, self.memory.state
        python = self._base.python_of(version)
        if state.phase in ("trial", "back"):
            self._began = self._began or now
            self.memory.save(replace(state, starts=state.starts + 1))
        self._start_at = now + self._paces.again_s
        environment = environment_of(version, python) | self._relay.environment()
        self._child = Child(command(version, python, self._words), environment)
        write_whole(self.memory.folder / "child", f"{self._child.pid}\n")
        if state.handover == {"path": str(self._own), "ok": False}:
            self.memory.save(replace(self.memory.state, handover={"path": str(self._own), "ok": True}))

    def _ended(self, code: int, now: float) -> int | None:
        """What to do about it; the exit code if that is to end us too."""
        shown, state = code if code >= 0 else 128 - code, self.memory.state
        if self._stopping:
            return shown
        if self._left:
            self._left = False
            self.successor = self._next_launcher()  # that one does it
            if self.successor is None:
                self._switch()
            return None
        if state.phase not in ("trial", "back") or code == 0 or code in OPERATORS:
            return shown
        if code == WRONG:  # it says no, and would say it every time
            self.memory.save(replace(state, starts=self._paces.patience.starts))
        self._start_at = now + self._paces.again_s
        self._judge(now, gone=True, what=f"the node ended with exit code {shown}")
        return None

    def _next_launcher(self) -> Path | None:
        """The launcher of the running version takes over while no node runs and nothing is on trial; one that did not
        get as far as starting a node does not get a second try."""
        version, state = self.current, self.memory.state
        script = version / "scripts" / "launch.py"
        if version == self._own or state.phase not in ("idle", "switching") or not script.is_file():
            return None
        if state.handover == {"path": str(version), "ok": False}:
            self.say(f"the launcher of {version} did not start a node the last time; this one goes on")
            return None
        self.memory.save(replace(state, handover={"path": str(version), "ok": False}))
        return version

    # --- from version to version

    def _look(self, now: float) -> None:
        found = self.memory.folder / "found.json"
        if found.is_file():
            self._take(json.loads(found.read_text("utf-8")), now)
            found.unlink()
        if self._looking is not None and self._looking.poll() is not None:
            self._looking = None
        if self._looking is None and now >= self._next_look and self.memory.state.phase in ("idle", "ready"):
            self._next_look = now + self._paces.look_s * random.uniform(0.75, 1.25)
            self._looking = self._start_look()

    def _take(self, found: dict[str, Any], now: float) -> None:
        """What a look found. Trouble is said once when it begins and once when it ends."""
        if found["kind"] == "no":
            if found["line"] != self._told:
                self.say(found["line"])
            self._told = found["line"]
            return
        if self._told:
            self.say(f"that is over: {found['line']}")
        self._told = ""
        state = self.memory.state
        if found["kind"] != "ready" or state.phase not in ("idle", "ready") or Path(found["path"]) == self.current:
            return
        if state.candidate is not None and state.candidate.tag == found["tag"] and not found["now"]:
            return
        wait_s = 0.0 if found["now"] else delay_s(self._where.hotkey, found["tag"], self._paces.window_s)
        self.memory.save(replace(state, phase="ready", candidate=Candidate(found["tag"], found["path"], now + wait_s)))
        self.say(f"{found['tag']} is ready beside the running version; it is taken in {wait_s / 3600:.1f} h")

    def _go_on(self, now: float) -> None:
        state = self.memory.state
        if state.phase == "ready" and state.candidate is not None and now >= max(state.candidate.due, self._not_before):
            self._leave(state.candidate, now)
        elif state.phase == "switching" and not self._left and self._child is None:
            self._finish_switch()
        elif state.phase == "switching" and self._child is not None and now >= self._leave_by:
            self._child.stop()
        elif state.phase in ("trial", "back") and self._child is not None:
            self._judge(now, gone=False, what="it settled no round in time")

    def _leave(self, candidate: Candidate, now: float) -> None:
        seen = look(self.node_dir())
        state = replace(self.memory.state, phase="switching", former=str(self.current), before=seen.before(), starts=0)
        self.memory.save(state)
        if self._child is None:
            self._switch()
            return
        self.say(f"{candidate.tag} is taken: the node leaves between two rounds")
        self._left, self._leave_by = True, now + self._paces.border_s + BORDER_ROUNDS * (seen.round_s or 0.0)
        self._child.tell(signal.SIGUSR1)

    def _switch(self) -> None:
        """The node has left. Its journal is kept as it is now: the former version may not read a newer one's."""
        state, node = self.memory.state, self.node_dir()
        assert state.candidate is not None
        if node is not None:
            keep_journal(node, self.memory.folder / "journal.before")
        point(self._link, state.candidate.path)
        self._finish_switch()

    def _finish_switch(self) -> None:
        """`current` is the truth: one rename moved it or did not."""
        state = self.memory.state
        if state.phase != "switching" or state.candidate is None or state.before is None:
            return
        if self.current != Path(state.candidate.path):
            self.memory.save(replace(state, phase="ready"))
            return
        before = replace(state.before, last_round=look(self.node_dir()).last_round)
        self.memory.save(replace(state, phase="trial", starts=0, before=before))
        self._start_at, self._began = 0.0, None
        self.say(f"{state.candidate.tag} is on trial until it has settled a round")

    def _judge(self, now: float, *, gone: bool, what: str) -> None:
        state = self.memory.state
        assert state.candidate is not None and state.before is not None
        self._began = self._began or now
        seen, tag = look(self.node_dir()), state.candidate.tag
        verdict = judge(state.before, seen, self._began, now, state.starts, gone, self._paces.patience)
        if verdict == "wait":
            return
        if verdict == "settled" and state.phase == "trial":
            self._end(f"{tag} runs and has settled round {seen.last_round}")
        elif verdict == "settled":
            bad = {**state.bad, tag: "it got through no round here, the version before it did"}
            self._end(f"the former version runs again; {tag} is not tried again", bad=bad)
        elif state.phase == "trial" and verdict == "chain moved":
            why = moved(state.before, seen, self._began)
            self._end(f"{tag} has settled no round, but {why}: the former version could not either, {tag} stays")
        elif state.phase == "trial":
            self.say(f"{tag} failed: {what}; back to the former version")
            self.memory.save(replace(self.memory.state, phase="back", starts=0))
            self._child = ended(self._child)
            self._put_back()
        else:
            self._child = ended(self._child)
            point(self._link, state.candidate.path)
            self._end(f"the former version gets through no round either: the chain or the run moved, {tag} stays")

    def _put_back(self) -> None:
        if (node := self.node_dir()) is not None:
            return_journal(node, self.memory.folder / "journal.before")
        point(self._link, self.memory.state.former or str(self._base.path))
        self._start_at, self._began = 0.0, None

    def _end(self, line: str, **changes: Any) -> None:
        self.memory.end(**changes)
        self.say(line)
        with suppress(OSError, NoUpdate):
            clear(self._home)
