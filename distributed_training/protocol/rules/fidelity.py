"""Gradient fidelity: a miner's log against a replay of its first steps (protocol section 7).

Each step is measured three ways: the relative error of the gradient sketches (worst parameter group), the logarithm
of the gradient-norm ratio, and the differences of the per-sequence losses. Below `ok` a measure is fine, above `bad`
the audit fails, between them quality falls with the logarithm. Bounds grow with the step, see `growth`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from distributed_training.protocol.manifest import MOST_ERROR
from distributed_training.protocol.observed import AuditResult, Verdict
from distributed_training.protocol.sections import AuditSection
from distributed_training.protocol.types import StepRecord

# A group with less than this share of the whole sketch's norm is measured as if it had this share: an error in it
# moves nothing, and the rounding of fp16 must not look like one.
TINY_GROUP = 0.01
# At most this share of the sequences (always at least one) may be off by more than loss_bad: an honest loss spike.
OFF_SEQUENCES = 0.05
# Two honest nodes differ by about what an auditor's own two replays do; by up to four times as much where rounding has
# had time to grow (docs/drift.md).
OWN_OK, OWN_BAD = 3.0, 6.0
# Gradient errors of step 0 against n0, the noise floor of the auditor's own hardware (facts: thresholds, section 2.6).
NOISE_OK, NOISE_BAD = 4.0, 12.0
_NOISE_MOST_OK, _NOISE_MOST_BAD = MOST_ERROR / 2, MOST_ERROR * 0.99  # whatever the noise: other data never pass
VECTORS = ("vector", "vector norm")  # reasons that only a full replay can find
DIRECTION = "direction"
NUMERIC = ("gradient", "norm", "loss", DIRECTION, *VECTORS)  # reasons that are a threshold's alone
# The first L steps of H point where the whole round goes by sqrt(L / H) if all steps are at random, and by more if they
# pull the same way; measured: three times that (docs/drift.md). Noise or nothing does by 0, one turned round by less.
LEAST_DIRECTION = 0.1
_FP16_STEP = 2.0**-24  # the smallest fp16 number: half of it is the largest rounding error near zero

_Part = npt.NDArray[np.float32]


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

    def widened(self, own: float) -> Measure:
        return replace(self, ok=max(self.ok, OWN_OK * own), bad=max(self.bad, OWN_BAD * own))


def judge(
    logged: Sequence[StepRecord],
    replayed: Sequence[StepRecord],
    *,
    depth: int,
    audit: AuditSection,
    again: Sequence[StepRecord] = (),
    noise: float = 0.0,
) -> AuditResult:
    """Verdict on the first `depth` steps; both sequences start at step 0. Stops at the first failing step.

    A log shorter than `depth` fails, and so does one that goes on where the miner's data end (`replayed` shorter
    than `depth` without a failing step). `error` is the number that decided, or the worst gradient error of a pass.
    `again`: the auditor's own second replay, rounded otherwise. What its two differ by, times OWN_OK and OWN_BAD, is
    held against nobody; where gradients of other data could then pass, the log is judged no further. `noise`: n0.
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
        found = tuple(measure_step(logged[step], replayed[step], audit, noise))
        if step < len(again):
            own = measure_step(again[step], replayed[step], audit, noise)
            found = tuple(m.widened(mine.error) for m, mine in zip(found, own, strict=True))
            if found[0].bad >= MOST_ERROR and step > 0:
                break
        bad = next((m for m in found if m.error > m.bad), None)
        if bad is not None:
            return _failed(depth, step, bad.error, bad.reason, bad.ok, bad.bad)
        measures.extend(found)
    return _not_failed(measures, depth)


def failing(logged: StepRecord, replayed: StepRecord, audit: AuditSection, noise: float = 0.0) -> bool:
    """True when this step alone fails the audit, so that a replay may stop here."""
    if log_problem(logged, replayed.step, logged) is not None or not same_shape(logged, replayed):
        return True
    return any(m.error > m.bad for m in measure_step(logged, replayed, audit, noise))


def measure_step(
    logged: StepRecord, replayed: StepRecord, audit: AuditSection, noise: float = 0.0
) -> Iterator[Measure]:
    """The measures of one step of two well-formed records of the same shape."""
    t = replayed.step
    grown = growth(audit, t)
    error = gradient_error(logged, replayed)
    ok = max(audit.error_ok * grown, min(NOISE_OK * noise * grown, _NOISE_MOST_OK))
    bad = max(audit.error_bad * grown, min(NOISE_BAD * noise * grown, _NOISE_MOST_BAD))
    yield Measure(t, "gradient", error, ok, bad)
    ratio = _log_ratio(logged.grad_norm, replayed.grad_norm)
    yield Measure(t, "norm", ratio, math.log1p(audit.norm_ok) * grown, math.log1p(audit.norm_bad) * grown)
    differences = np.abs(np.asarray(logged.losses) - np.asarray(replayed.losses))
    ok, bad = audit.loss_ok * grown, audit.loss_bad * grown
    yield Measure(t, "loss", float(np.median(differences)), ok, bad)
    allowed = max(1, math.floor(OFF_SEQUENCES * len(differences)))
    if len(differences) > 1:
        # The largest difference that more than `allowed` sequences reach: above bad when too many are off.
        yield Measure(t, "loss", float(np.sort(differences)[-allowed - 1]), bad, bad)


def growth(audit: AuditSection, step: int) -> float:
    """What the bounds of step `step` are a multiple of: two honest trajectories drift apart, cheats no further than to
    gradients that have nothing in common, so it ends at `error_growth_max`."""
    return min(audit.error_growth_max, 1.0 + step / audit.error_growth_steps)


def scored(result: AuditResult, audit: AuditSection) -> AuditResult:
    """What counts of a verdict: in the mode "log" what thresholds alone say is told, and counts as a pass."""
    if audit.mode == "enforce" or result.verdict is Verdict.PASS or result.reason not in NUMERIC:
        return result
    return replace(result, verdict=Verdict.PASS, quality=1.0)


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


def judge_vector(parts: Iterable[tuple[_Part, _Part, _Part]], audit: AuditSection, *, depth: int) -> AuditResult | None:
    """A full replay's pseudo-gradient, the decoded committed one, and that of the auditor's own second replay, rounded
    otherwise (else the first again), float32, all in the same parts. None when the first two agree.


    Fails when their cosine is below `vector_cosine_bad` or their norms differ by more than `norm_bad`, and by more than
    twice what the auditor's two do.
    """
    products = np.zeros((3, 3))
    for part in parts:
        vectors = np.stack([one.astype(np.float64) for one in part])
        products += vectors @ vectors.T
    norms = np.sqrt(np.diag(products)).tolist()
    cosine, own_cosine = (_cosine(products[0, i], norms[0], norms[i]) for i in (1, 2))
    lowest = min(audit.vector_cosine_bad, 2.0 * own_cosine - 1.0)
    if not cosine >= lowest:  # NaN fails too
        return _failed(depth, None, cosine, "vector", lowest, lowest)
    ratio, own_ratio = (_log_ratio(norms[i], norms[0]) for i in (1, 2))
    bad = max(math.log1p(audit.norm_bad), 2.0 * own_ratio)
    return _failed(depth, None, ratio, "vector norm", bad, bad) if ratio > bad else None


def judge_direction(parts: Iterable[tuple[_Part, _Part]], *, depth: int, steps: int) -> AuditResult | None:
    """Some parts of the pseudo-gradient of the first `depth` steps and of the committed one, of `steps`, float32. None
    when they do not point apart, or the first steps have not moved these parts at all."""
    product = own = theirs = 0.0
    for mine, committed in parts:
        a, b = mine.astype(np.float64), committed.astype(np.float64)
        product, own, theirs = product + float(a @ b), own + float(a @ a), theirs + float(b @ b)
    if own == 0.0:
        return None
    least = LEAST_DIRECTION * math.sqrt(depth / steps)
    cosine = _cosine(product, math.sqrt(own), math.sqrt(theirs))
    return None if cosine >= least else _failed(depth, None, cosine, DIRECTION, least, least)


def _cosine(product: float, norm: float, other: float) -> float:
    """Of vectors that are both zero: 1."""
    return product / (norm * other) if norm * other > 0.0 else float(norm == other)


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
