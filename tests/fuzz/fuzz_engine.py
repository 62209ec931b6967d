"""What a fuzz target is, and one run of it: properties, memory, and where the inputs ended."""

from __future__ import annotations

import hashlib
import random
import re
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_mutate import mutate

CORPUS = Path(__file__).parent / "corpus"
ACCEPTED = "accepted"
POOL = 512  # inputs kept because they ended somewhere new


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder or handler under fire.

    `check` takes any bytes: it returns ACCEPTED, returns where the bytes were refused, raises one of `errors` (a
    refusal as well), or raises anything else: a finding. Memory: `per_byte * len(input) + constant` bytes at most.
    """

    name: str
    seeds: tuple[bytes, ...]
    check: Callable[[bytes], str]
    errors: tuple[type[Exception], ...] = ()
    per_byte: int = 100
    constant: int = 64 * 1024


class Finding(AssertionError):
    """An input that broke a property; it has been saved."""


@dataclass(slots=True)
class Result:
    """Row of the table. `ends` counts the inputs by where they ended."""

    target: str
    inputs: int = 0
    peak_bytes: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)

    @property
    def accepted(self) -> int:
        return self.ends[ACCEPTED]


def outcome(target: Target, data: bytes) -> str:
    """Where `data` ends; raises what must not happen."""
    try:
        return target.check(data)
    except target.errors as error:
        return stage(error)


def warm_up(target: Target) -> None:
    """Whatever a target imports or caches the first time is not the input's doing."""
    for data in target.seeds[:8]:
        with suppress(Exception):
            outcome(target, data)


def stage(error: Exception) -> str:
    """The error without its numbers: all refusals of one check have one name."""
    return type(error).__name__ + ": " + re.sub(r"0x[0-9a-f]+|[0-9a-f]{12,}|\d+", "#", str(error))[:70]


class TooMuchMemory(Exception):
    """More than the target declares."""


@contextmanager
def measured(target: Target, data: bytes):
    """Fails when the block allocates more than the target declares for `data`."""
    peak = [0]
    tracemalloc.start()
    try:
        yield peak
        peak[0] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = target.per_byte * len(data) + target.constant
    if peak[0] > allowed:
        raise TooMuchMemory(f"{len(data)} bytes made {target.name} allocate {peak[0]}, at most {allowed} are declared")


def save(target: Target, data: bytes, corpus: Path = CORPUS) -> Path:
    """Keep an input for ever: every test run replays the corpus."""
    path = corpus / target.name / f"{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@dataclass(slots=True)
class Run:
    """Feeds one target; measures the memory of the first `measure_first` inputs and of one in `measure_every`."""

    target: Target
    measure_first: int = 200
    measure_every: int = 64
    corpus: Path = CORPUS
    result: Result = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        warm_up(self.target)
        self.result = Result(self.target.name)
        self.began = time.perf_counter()

    def feed(self, data: bytes) -> bool:
        """One input. True if it ended somewhere new. Saves it and raises Finding when a property breaks."""
        result, target = self.result, self.target
        try:
            if result.inputs < self.measure_first or result.inputs % self.measure_every == 0:
                end, peak = self._measured(data)
                result.peak_bytes = max(result.peak_bytes, peak)
            else:
                end = outcome(target, data)
        except Exception as error:
            path = save(target, data, self.corpus)
            raise Finding(f"{target.name}: {type(error).__name__}: {error}\n  input saved as {path}") from error
        result.inputs += 1
        result.ends[end] += 1
        result.seconds = time.perf_counter() - self.began
        return result.ends[end] == 1

    def _measured(self, data: bytes) -> tuple[str, int]:
        """Where an input ends, and its peak. A table of the interpreter may double once in many inputs: what counts
        as a finding happens every time."""
        for last in (False, True):
            try:
                with measured(self.target, data) as peak:
                    end = outcome(self.target, data)
                return end, peak[0]
            except TooMuchMemory:
                if last:
                    raise
        raise AssertionError("not reached")


def random_inputs(target: Target, runs: int, seed: int, run: Run, seconds: float = 3600.0) -> None:
    """The plain mutator, until `runs` or `seconds`: the seeds, then edits of them and of what ended somewhere new."""
    rng = random.Random(f"{target.name}/{seed}")
    pool = list(target.seeds)
    for data in pool[:runs]:
        run.feed(data)
    while run.result.inputs < runs and run.result.seconds < seconds:
        data = mutate(rng.choice(pool), target.seeds, rng)
        if run.feed(data) and len(pool) < POOL:
            pool.append(data)


def saved_inputs(target: Target, corpus: Path = CORPUS) -> Iterable[Path]:
    return sorted((corpus / target.name).glob("*.bin"))


def max_rss_bytes() -> int:
    """Largest resident size of this process so far: an allocation that no sample measured shows here."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
