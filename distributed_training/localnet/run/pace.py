"""How long a block of the demo takes: what a round has to compute, over what this machine gives.

The offsets of a round are the preset's, in blocks, and the same everywhere: they stand in the manifest, from which
pages and roots follow. Only the seconds of a block are measured, once, when a run is created.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from distributed_training.averaging.plan import layout_of
from distributed_training.averaging.sizes import output_bytes, uplink_bytes
from distributed_training.errors import ConfigError
from distributed_training.localnet.layout import REPOSITORY
from distributed_training.localnet.options import MAX_BLOCK_S, MIN_BLOCK_S
from distributed_training.localnet.run.faults import RESTART_AFTER_S
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules.audit_plan import reach
from distributed_training.training.flat import to_flat
from distributed_training.training.inner import InnerLoop
from distributed_training.training.model import run_model, vocab_size

HEADROOM = 1.5  # of the training window over all that a round computes
EVALUATION = 1 / 3  # of a step: what a batch costs that is only evaluated (measured: 0.33)
LOOK_S = 0.005  # CPU seconds a node takes to follow the chain for a block (measured: 4 ms) ...
LOOK_SHARE = 0.1  # ... and the share of the time that may go there
MOVE_S = 1e-7  # CPU seconds to move and check a byte of the average: an estimate, not measured
MEASURE_S, MAX_STEPS = 1.5, 4  # a step is tried until so much time or so many steps are over
AROUND_S = 45.0  # what loading and checking take on two idle cores
BURN_S = 1.0
BURN = f"""
import time
begin, until = time.process_time(), time.monotonic() + {BURN_S}
while time.monotonic() < until: pass
print((time.process_time() - begin) / {BURN_S})
"""
LOADED = "import time, distributed_training.node; print(time.process_time())"


@dataclass(frozen=True, slots=True)
class Work:
    """What nodes do, as counts that no machine changes."""

    steps: tuple[int, ...]  # inner steps a round of each miner
    validators: int
    restarts: bool  # do nodes start while the rounds go on, and have to be in the next but one?
    num_coords: int  # parameters of the model

    @property
    def nodes(self) -> int:
        return 1 + self.validators + len(self.steps)


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured."""

    step_s: float  # CPU seconds of one inner step, on one thread
    cores: float  # what as many busy processes as there are nodes get, all together: CPU seconds a second
    start_s: float  # CPU seconds until a node has loaded its libraries


def round_steps(manifest: RunManifest, work: Work) -> float:
    """All that a round computes, in inner steps: training, everybody's replays, evaluations."""
    audits = work.validators * sum(replayed(manifest, steps, 1 / work.validators) for steps in work.steps)
    batches = manifest.data.heldout_sequences / manifest.data.batch_size
    return sum(work.steps) + audits + (1 + work.validators) * batches * EVALUATION


def replayed(manifest: RunManifest, steps: int, share: float) -> float:
    """Steps that one validator, with `share` of the stake, replays on average of a newcomer's: in a demo all are."""
    return math.fsum(reach(step, steps, manifest.audit, share, proven=False) for step in range(1, steps + 1))


def needed_block_s(machine: Machine, manifest: RunManifest, work: Work) -> float:
    """Seconds a block has to take, whatever is allowed.

    Everything that a round computes fits HEADROOM times into the window for training alone. Audits in fact have until
    the end of the next round, so that miners have twice the time they need on a machine that does nothing else. A node
    that starts again while all compute is there before the next round but one begins.
    """
    t = manifest.timing
    steps = max(round_steps(manifest, work) / machine.cores, float(max(work.steps)))
    layout = layout_of(manifest, work.num_coords)
    moved = output_bytes(manifest, layout) * work.nodes + uplink_bytes(manifest, layout) * len(work.steps)
    crowd = max(1.0, work.nodes / machine.cores)
    needs = [
        HEADROOM * steps * machine.step_s / (t.commit - t.commit_margin),
        HEADROOM * moved * MOVE_S / machine.cores / (t.output - t.commit),
        crowd * LOOK_S / LOOK_SHARE,
    ]
    if work.restarts:
        needs.append((RESTART_AFTER_S + machine.start_s * crowd) / t.length)
    return max(needs)


def block_seconds(machine: Machine, manifest: RunManifest, work: Work, exact: int | None) -> float:
    """In hundredths, between MIN_BLOCK_S and MAX_BLOCK_S.

    `exact`: steps at speed 1 that everybody has to do. Raises ConfigError when blocks would have to be longer than that
    allows; without `exact` miners do what the time allows.
    """
    needed = needed_block_s(machine, manifest, work)
    if exact is not None and needed > MAX_BLOCK_S:

        def fits(steps: int) -> bool:
            fewer = replace(work, steps=tuple(n // exact * steps for n in work.steps))
            return needed_block_s(machine, manifest, fewer) <= MAX_BLOCK_S

        most = next((steps for steps in range(exact - 1, 0, -1) if fits(steps)), None)
        hint = "a smaller --model" if most is None else f"at most --steps {most}"
        raise ConfigError(
            f"argument --steps: {exact} steps need blocks of {needed:.0f} s on this machine, where a step takes "
            f"{machine.step_s:.2g} s and {machine.cores:.1f} cores are free; {MAX_BLOCK_S:g} s is the longest: "
            f"expected {hint}, or fewer --miners"
        )
    return math.ceil(100 * min(max(needed, MIN_BLOCK_S), MAX_BLOCK_S)) / 100


def measured(manifest: RunManifest, work: Work) -> Machine:
    """This machine as it is now, others' load included. Takes a few seconds."""
    start_s = float(_said(_run("-c", LOADED))) if work.restarts else 0.0
    return Machine(step_seconds(manifest), free_cores(work.nodes), start_s)


def step_seconds(manifest: RunManifest) -> float:
    """CPU seconds of an inner step on one thread, the least of a few."""
    model = run_model(manifest.model)
    flat, loop, threads = to_flat(model), InnerLoop(model, manifest), torch.get_num_threads()
    shape = (manifest.data.batch_size, manifest.data.sequence_length)
    tokens = np.random.default_rng(0).integers(0, vocab_size(manifest.model.config), shape)
    stamps = [time.process_time()]
    torch.set_num_threads(1)
    try:
        loop.run(
            flat,
            iter([tokens] * MAX_STEPS),
            applied_rounds=0,
            sketch_seed=bytes(32),
            max_steps=MAX_STEPS,
            should_stop=lambda: stamps[-1] - stamps[0] > MEASURE_S,
            on_step=lambda record, seconds: stamps.append(time.process_time()),
        )
    finally:
        torch.set_num_threads(threads)
    return min(after - before for before, after in pairwise(stamps))


def free_cores(processes: int) -> float:
    """CPU seconds a second that so many busy processes get at once, whatever limits them: cores, quotas, others."""
    burning = [_run("-I", "-S", "-c", BURN) for _ in range(processes)]
    return sum(float(_said(process)) for process in burning)


def _run(*arguments: str) -> subprocess.Popen[str]:
    """In a session of its own, like a node: some schedulers share the cores out by session first."""
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=REPOSITORY
    )


def _said(process: subprocess.Popen[str]) -> str:
    return process.communicate()[0]


def in_words(block_s: float, manifest: RunManifest, rounds: int) -> str:
    """`rounds`: those that are run."""
    t = manifest.timing
    seconds = (t.first_block + rounds * t.length) * block_s
    return (
        f"a block takes {block_s:g} s, a round {t.length * block_s:.0f} s, {rounds} rounds {duration(seconds)}; with "
        f"loading and checking {duration(seconds + AROUND_S)} in all"
    )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.1f} minutes"
