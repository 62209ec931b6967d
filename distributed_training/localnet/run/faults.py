"""Planned kills, carried out: SIGKILL at a node's own phase event, a look at what survived, the same command again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed_training.localnet.events import Event
from distributed_training.localnet.run.group import alive, bytes_in_flight, members
from distributed_training.localnet.run.kills import Kill
from distributed_training.localnet.run.processes import NodeProcesses

SURVIVORS_AFTER_S = 5.0  # what of a node still lives then outlived it
RESTART_AFTER_S = 10.0

Note = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Start:
    """How a node is started, the first time and again."""

    command: Sequence[str]
    log: Path


@dataclass(slots=True)
class _Down:
    kill: Kill
    at: float  # on the monotonic clock
    pids: tuple[int, ...]  # of the node and its helpers at the kill
    survivors: tuple[int, ...] | None = None


class Killer:
    """`saw` and `tick` are called from the demo's loop; whatever happens goes to `note` as an event."""

    def __init__(
        self,
        kills: Sequence[Kill],
        processes: NodeProcesses,
        starts: Mapping[str, Start],
        note: Note,
        block: Callable[[], int | None],
        *,
        survivors_after_s: float = SURVIVORS_AFTER_S,
        restart_after_s: float = RESTART_AFTER_S,
    ) -> None:
        self._waiting = list(kills)
        self._processes, self._starts, self._note, self._block = processes, starts, note, block
        self._survivors_after_s, self._restart_after_s = survivors_after_s, restart_after_s
        self._down: dict[str, _Down] = {}

    @property
    def busy(self) -> bool:
        """Is a killed node still to be started again?"""
        return bool(self._down)

    def saw(self, name: str, event: Event) -> None:
        """Kill the node if this is the phase event it was to die at."""
        if event["event"] != "phase" or name in self._down:
            return
        for kill in self._waiting:
            if kill.name == name and kill.phase == event.get("phase") and kill.round <= (event["round"] or 0):
                self._waiting.remove(kill)
                self._kill(kill, int(event["round"] or 0))
                return

    def _kill(self, kill: Kill, index: int) -> None:
        pid = self._processes.pid(kill.name)
        if pid is None:  # it ended by itself meanwhile
            return
        pids = members(pid)
        in_flight = bytes_in_flight(pids)
        block = self._block()
        self._processes.kill(kill.name)
        self._down[kill.name] = _Down(kill, time.monotonic(), pids)
        self._note(
            {
                "event": "killed",
                "round": index,
                "name": kill.name,
                "role": kill.role,
                "phase": kill.phase,
                "block": block,
                "pid": pid,
                "helpers": [p for p in pids if p != pid],
                "bytes_in_flight": in_flight,
            }
        )

    def tick(self) -> None:
        """Survivors after SURVIVORS_AFTER_S, the restart after RESTART_AFTER_S."""
        for name, down in list(self._down.items()):
            since = time.monotonic() - down.at
            if down.survivors is None and since >= self._survivors_after_s:
                leader = self._processes.last_pid(name)
                down.survivors = tuple(sorted({p for p in down.pids if alive(p)} | set(members(leader))))
            if since >= self._restart_after_s:
                del self._down[name]
                self._restart(name, down)

    def _restart(self, name: str, down: _Down) -> None:
        start = self._starts[name]
        self._processes.start(name, start.command, start.log)
        self._note(restarted(name, self._processes.last_pid(name), self._block(), down.survivors or ()))


def restarted(name: str, pid: int, block: int | None, survivors: Sequence[int]) -> dict[str, Any]:
    """The event; `survivors`: processes of the killed node that had not ended by themselves."""
    head = {"event": "restarted", "round": None, "name": name}
    return head | {"block": block, "pid": pid, "survivors": list(survivors)}
