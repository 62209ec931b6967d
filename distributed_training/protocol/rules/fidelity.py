"""Gradient fidelity: a miner's log against a replay of its first steps (protocol section 7).

Each step is measured three ways: the relative error of the gradient sketches (worst parameter group), the logarithm
of the gradient-norm ratio, and the differences of the per-sequence losses. Below `ok` a measure is fine, above `bad`
the audit fails, between them quality falls with the logarithm. Bounds grow by (1 + t / error_growth_steps), because
two honest trajectories drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distributed_training.protocol.manifest import AuditSection
from distributed_training.protocol.types import AuditResult, StepRecord, Verdict

# A group with less than this share of the whole sketch's norm is measured as if it had this share: an error in it
# moves nothing, and the rounding of fp16 must not look like one.
TINY_GROUP = 0.01
# At most this share of the sequences (always at least one) may be off by more than loss_bad: an honest loss spike.
OFF_SEQUENCES = 0.05
_FP16_STEP = 2.0**-24  # the smallest fp16 number: half of it is the largest rounding error near zero


@dataclass(frozen=True, slots=True)
class Measure:
    """One measured number of one step with its bounds; `quality` is 1 up to ok, 0 from bad on."""

    step: int
    reason: str
    error: float
    ok: float
    bad: float

    @property
    def quality(self) -> float:
        if self.error <= self.ok:
            return 1.0
        if self.error >= self.bad:
            return 0.0
        return math.log(self.bad / self.error) / math.log(self.bad / self.ok)


def judge(
    logged: Sequence[StepRecord], replayed: Sequence[StepRecord], *, depth: int, audit: AuditSection
) -> AuditResult:
    """Verdict on the first `depth` steps; both sequences start at step 0. Stops at the first failing step.

    A log shorter than `depth` fails, and so does one that goes on where the miner's data end (`replayed` shorter
    than `depth` without a failing step). `error` is the number that decided, or the worst gradient error of a pass.
    """
    if depth < 1:
        raise ValueError(f"expected depth >= 1, got {depth}")
    measures: list[Measure] = []
    for step in range(depth):
        if step >= len(logged):
            return _failed(depth, step, None, "log short" if logged else "log missing")
        problem = log_problem(logged[step], step, logged[0])
        if problem is not None:
            return _failed(depth, step, None, problem)
        if step >= len(replayed):
            return _failed(depth, step, None, "no data")
        if not same_shape(logged[step], replayed[step]):
            return _failed(depth, step, None, "log malformed")
        found = tuple(measure_step(logged[step], replayed[step], audit))
        bad = next((m for m in found if m.error > m.bad), None)
        if bad is not None:
            return _failed(depth, step, bad.error, bad.reason, bad.ok, bad.bad)
        measures.extend(found)
    return _not_failed(measures, depth)


def failing(logged: StepRecord, replayed: StepRecord, audit: AuditSection) -> bool:
    """True when this step alone fails the audit, so that a replay may stop here."""
    if log_problem(logged, replayed.step, logged) is not None or not same_shape(logged, replayed):
        return True
    return any(m.error > m.bad for m in measure_step(logged, replayed, audit))


def measure_step(logged: StepRecord, replayed: StepRecord, audit: AuditSection) -> Iterator[Measure]:
    """The measures of one step of two well-formed records of the same shape."""
    t = replayed.step
    growth = 1.0 + t / audit.error_growth_steps
    error = gradient_error(logged, replayed)
    yield Measure(t, "gradient", error, audit.error_ok * growth, audit.error_bad * growth)
    ratio = _log_ratio(logged.grad_norm, replayed.grad_norm)
    yield Measure(t, "norm", ratio, math.log1p(audit.norm_ok) * growth, math.log1p(audit.norm_bad) * growth)
    differences = np.abs(np.asarray(logged.losses) - np.asarray(replayed.losses))
    ok, bad = audit.loss_ok * growth, audit.loss_bad * growth
    yield Measure(t, "loss", float(np.median(differences)), ok, bad)
    allowed = max(1, math.floor(OFF_SEQUENCES * len(differences)))
    if len(differences) > 1:
        # The largest difference that more than `allowed` sequences reach: above bad when too many are off.
        yield Measure(t, "loss", float(np.sort(differences)[-allowed - 1]), bad, bad)


def gradient_error(logged: StepRecord, replayed: StepRecord) -> float:
    """max over groups of ||s - s'|| / ||s'||, s' the replayer's sketch; tiny groups are measured against a floor."""
    ours = np.asarray(replayed.sketch, dtype=np.float64)
    theirs = np.asarray(logged.sketch, dtype=np.float64)
    norms = np.sqrt((ours * ours).sum(axis=1))
    rounding = _FP16_STEP * math.sqrt(ours.shape[1]) * 100.0
    floor = max(TINY_GROUP * math.sqrt(float((norms * norms).sum())), rounding)
    differences = np.sqrt(((ours - theirs) ** 2).sum(axis=1))
    return float((differences / np.maximum(norms, floor)).max())


def log_problem(record: StepRecord, step: int, first: StepRecord) -> str | None:
    """What is wrong with one logged step by itself; None when it can be compared. `first` is step 0 of the log."""
    numbers = (record.grad_norm, *record.losses, *(x for row in record.sketch for x in row))
    if record.step != step or not same_shape(record, first):
        return "log malformed"
    if not all(math.isfinite(x) for x in numbers) or record.grad_norm < 0:
        return "log not finite"
    return None


def same_shape(a: StepRecord, b: StepRecord) -> bool:
    """Equal numbers of sequences, groups and coordinates, none of them zero."""
    shape = [len(row) for row in a.sketch]
    return len(a.losses) == len(b.losses) > 0 and shape == [len(row) for row in b.sketch] and min(shape, default=0) > 0


def judge_vector(
    replayed: npt.NDArray[np.float32], committed: npt.NDArray[np.float32], audit: AuditSection, *, depth: int
) -> AuditResult | None:
    """A full replay's pseudo-gradient against the decoded committed one, both float32 [d]; None when they agree.

    Fails when their cosine is below `vector_cosine_bad` or their norms differ by more than `norm_bad`.
    """
    if replayed.shape != committed.shape:
        return _failed(depth, None, None, "vector")
    ours, theirs = replayed.astype(np.float64), committed.astype(np.float64)
    norm, other = float(np.sqrt(ours @ ours)), float(np.sqrt(theirs @ theirs))
    if norm == 0.0 and other == 0.0:
        return None
    cosine = float(ours @ theirs) / (norm * other) if norm * other > 0.0 else 0.0
    if not cosine >= audit.vector_cosine_bad:  # NaN fails too
        return _failed(depth, None, cosine, "vector", audit.vector_cosine_bad, audit.vector_cosine_bad)
    ratio, bad = _log_ratio(other, norm), math.log1p(audit.norm_bad)
    return _failed(depth, None, ratio, "vector norm", bad, bad) if ratio > bad else None


def _log_ratio(a: float, b: float) -> float:
    """|log(a / b)|; infinite when exactly one of them is zero."""
    if a == b:
        return 0.0
    return abs(math.log(a / b)) if a > 0.0 and b > 0.0 else math.inf


def _not_failed(measures: Sequence[Measure], depth: int) -> AuditResult:
    worst = min(measures, key=lambda m: m.quality)
    if worst.quality >= 1.0:
        top = max((m for m in measures if m.reason == "gradient"), key=lambda m: m.error)
        return AuditResult(Verdict.PASS, 1.0, depth, None, top.error, "ok", top.ok, top.bad)
    return AuditResult(Verdict.SOFT, worst.quality, depth, worst.step, worst.error, worst.reason, worst.ok, worst.bad)


def _failed(
    depth: int, step: int | None, error: float | None, reason: str, good: float | None = None, bad: float | None = None
) -> AuditResult:
    finite = error if error is None or math.isfinite(error) else None
    return AuditResult(Verdict.FAIL, 0.0, depth, step, finite, reason, good, bad)
