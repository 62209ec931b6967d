"""Nodes that come while the run goes on: registered with a fresh hotkey, then started like any other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed_training.localnet.events import Event, RunEvents
from distributed_training.localnet.layout import REPOSITORY, NodeSpec, RunPaths
from distributed_training.localnet.run.faults import Start
from distributed_training.localnet.run.processes import NodeProcesses


class Disturber(Protocol):
    """What happens on purpose while a run goes on. Called from the demo's loops."""

    @property
    def busy(self) -> bool:
        """Will it still start a process?"""
        ...

    def saw(self, name: str, event: Event) -> None: ...

    def tick(self) -> None: ...


class Together:
    """Several, one after the other."""

    def __init__(self, *disturbers: Disturber) -> None:
        self._disturbers = disturbers

    @property
    def busy(self) -> bool:
        return any(disturber.busy for disturber in self._disturbers)

    def saw(self, name: str, event: Event) -> None:
        for disturber in self._disturbers:
            disturber.saw(name, event)

    def tick(self) -> None:
        for disturber in self._disturbers:
            disturber.tick()


@dataclass(frozen=True, slots=True)
class Newcomer:
    spec: NodeSpec
    round: int  # comes when the first node begins this round


class Newcomers:
    """Registers and starts each newcomer in its round, each step as a process of its own. Told of every event."""

    def __init__(
        self,
        waiting: Sequence[Newcomer],
        paths: RunPaths,
        processes: NodeProcesses,
        events: RunEvents,
        starts: dict[str, Start],
        command: Callable[[NodeSpec], list[str]],
        say: Callable[[str], None],
    ) -> None:
        """`starts` gets the start of each newcomer; `command` is how one is started."""
        self._waiting = sorted(waiting, key=lambda newcomer: newcomer.round)
        self._paths, self._processes, self._events, self._starts = paths, processes, events, starts
        self._command, self._say = command, say
        self._registering: list[NodeSpec] = []

    @property
    def busy(self) -> bool:
        return bool(self._registering)

    def saw(self, name: str, event: Event) -> None:
        if event["event"] == "phase" and self._waiting and (event["round"] or 0) >= self._waiting[0].round:
            self._register(self._waiting.pop(0).spec)

    def _register(self, spec: NodeSpec) -> None:
        command = [sys.executable, str(REPOSITORY / "scripts" / "register.py"), "--run-dir", str(self._paths.root)]
        self._processes.start(_job(spec), [*command, "--wallet.hotkey", spec.name], self._paths.root / "register.txt")
        self._registering.append(spec)

    def tick(self) -> None:
        """Whoever is registered is started; whose registration failed is not."""
        codes = self._processes.exit_codes()
        for spec in [s for s in self._registering if codes[_job(s)] not in (None, 0)]:
            self._registering.remove(spec)
            self._say(f"{spec.name} could not be registered: see register.txt")
        for spec in [s for s in self._registering if codes[_job(s)] == 0]:
            self._registering.remove(spec)
            start = Start(self._command(spec), self._paths.node(spec.name) / "log.txt")
            self._starts[spec.name] = start
            self._events.add(spec)
            self._processes.start(spec.name, start.command, start.log)
            self._say(f"{spec.name} is registered and starts")


def _job(spec: NodeSpec) -> str:
    return f"register {spec.name}"
