"""Training alone, for comparison: beside the rounds, on what the nodes leave of the processors, or after them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from distributed_training.errors import ChainFault
from distributed_training.localnet.events import RunView
from distributed_training.localnet.judge import baselines
from distributed_training.localnet.judge.baselines import FOLDER, JOBS, NICENESS, UNION, RoundJob
from distributed_training.localnet.judge.summary import Baselines, ChainFacts, read_chain, rounds_seen
from distributed_training.localnet.layout import miners
from distributed_training.localnet.run.create import Run
from distributed_training.localnet.run.processes import NodeProcesses
from distributed_training.training.model import model_size

WORKERS = 2  # one worker on all tokens has as much to do as all that train alone
COORD_BYTES = 16  # of each that trains: parameters, gradient, two moments
TRIES = 5
MEMORY_SHARE = 1 / 8  # of what is free that all of them may take while the nodes run


class Comparison:
    """`start` it when the nodes are loaded, `tick` while they run, `finish` when they ended."""

    def __init__(self, run: Run, view: RunView, processes: NodeProcesses) -> None:
        self._run, self._view, self._processes = run, view, processes
        self._honest = [spec for spec in miners(run.specs) if spec.adversary is None]
        self._names = [*(str(spec.uid) for spec in self._honest), UNION]
        self._folder = run.paths.root / FOLDER
        self._jobs: list[RoundJob] = []
        self._newest = -1  # round that the chain was asked about
        self._started = False

    def start(self) -> None:
        """All side by side, if they have room beside the nodes; else everything waits for `finish`."""
        needed = COORD_BYTES * model_size(self._run.manifest.model.config) * len(self._names)
        if needed <= psutil.virtual_memory().available * MEMORY_SHARE:
            self._start(side_by_side=True)

    def tick(self) -> None:
        """Rounds that were settled since the last call are there to be trained."""
        fresh = [index for index in rounds_seen(self._view) if index > self._newest]
        if self._started and fresh:
            try:
                self._write(read_chain(self._run, fresh), over=False)
            except ChainFault:
                return  # busy: the next call asks again
            self._newest = fresh[-1]

    def finish(self, chain: ChainFacts) -> None:
        """No more rounds will come."""
        if not self._started:
            self._start(side_by_side=False)
        self._favour(0)
        self._write(chain, over=True)

    def give_up(self) -> None:
        """At once: there is nothing to be put away."""
        self._favour(0)
        for name in self._processes.running():
            self._processes.kill(name)

    def progress(self) -> tuple[int, int]:
        """Inner steps done, and those that are known to be to do."""
        found = [read_json(self._folder / f"{name}.json") for name in self._names]
        return sum(f["done"] for f in found if f), sum(baselines.steps_of(name, self._jobs) for name in self._names)

    def result(self) -> Baselines:
        """What came to its end."""
        losses: dict[str, dict[int, float]] = {}
        for name in self._names:
            found = read_json(self._folder / f"{name}.json")
            if found is not None and "losses" in found:
                losses[name] = {int(index): loss for index, loss in found["losses"].items()}
        solo = {int(name): losses.get(name, {}) for name in self._names if name != UNION}
        return Baselines(solo, losses.get(UNION, {}))

    def _start(self, *, side_by_side: bool) -> None:
        """Results of an earlier part of a resumed run are not to be taken for this one's."""
        self._started = True
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.glob("*.json*"):
            path.unlink()
        (self._folder / JOBS).touch()
        usual = RoundJob(0, 0, b"", {spec.uid: spec.steps or 0 for spec in self._honest})
        for number, share in enumerate(baselines.deal(self._names, [usual], WORKERS)):
            command = [sys.executable, "-m", baselines.__name__, str(self._run.paths.root)]
            command += [",".join(share)] if side_by_side else share
            self._processes.start(f"baselines {number}", command, self._folder / f"log-{number}.txt")
        self._favour(NICENESS)

    def _favour(self, niceness: int) -> None:
        for number in range(WORKERS):
            if (pid := self._processes.pid(f"baselines {number}")) is not None:
                favour(pid, niceness)

    def _write(self, chain: ChainFacts, *, over: bool) -> None:
        known = {job.index for job in self._jobs}
        fresh = [job for job in round_jobs(self._view, chain) if job.index not in known]
        self._jobs += fresh
        baselines.write_jobs(self._folder / JOBS, fresh, over=over)


def favour(pid: int, niceness: int) -> None:
    """Of the process's whole session: some kernels share the processors out by session before they look at a process's
    own niceness. This can be taken back when the nodes have ended, which that of a process cannot."""
    for _ in range(TRIES):
        try:
            Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
        except BlockingIOError:  # one change in a tenth of a second
            time.sleep(0.1)
        except OSError:  # no such kernel, or the process has ended
            return
        else:
            return


def round_jobs(view: RunView, chain: ChainFacts) -> list[RoundJob]:
    """The work that the averages hold: of a round that came to nothing, alone or together, nobody has it."""
    jobs: list[RoundJob] = []
    for applied, index in enumerate(view.applied()):
        included = next(n.rounds[index]["included"] for n in view.nodes.values() if index in n.rounds)
        trained = [n for n in view.of_role("miner") if index in n.trains and n.uid in included]
        if index in chain.beacons and trained:
            steps = {n.uid: int(n.trains[index]["steps"]) for n in trained}
            jobs.append(RoundJob(index, applied, chain.beacons[index], steps))
    return jobs


def read_json(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
