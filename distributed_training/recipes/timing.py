"""How short a round can be: the block offsets, from what has to happen between two trainings. Pure.

A round of the protocol (docs/protocol.md, section 3) is training, T blocks, and what follows it whatever is trained:

    M    a last step that takes longer than the one before, encoding, and the commitment's way into a block
    W    scatter: twice what the slowest link needs, so that a third of it, a stall time, can be lost to a dead reducer.
         At least f: an output's hash goes on chain when the plan is final
    R    reducing, and the output hash's way into a block
    transfer  gather, after s+X: half more than the slowest link needs; twice, for a slice may have twice the mean size,
         from the block before s+X on, when it has a hash unless a sender was silent. At least f: a map is written again
         where finality decides otherwise
    V    the slice map's way into a block: who holds all has written it before
    f    until that is final: the outer step cannot be undone
    B    the outer step, and until the next roster is final. Who trains ahead trains in it

Where rounds overlap, all of that passes while the next round is trained, which begins as soon as this one's vector is
encoded: then s+D is the next round's start, its roster is seen when training ends, and a round must be longer than what
it does after training.

A round is longer where the chain takes no more commitments in an epoch. What a round has left over is trained in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from distributed_training.errors import ConfigError
from distributed_training.protocol.rules.clock import EPOCH_MARGIN
from distributed_training.protocol.sections import TimingSection

# A write is in one of the EPOCH_MARGIN blocks after the one in which it was sent: the first of them is what the work
# before it is rounded up to, these are the others.
INCLUSION = EPOCH_MARGIN - 1
LEAST_SCATTER, LEAST_TRANSFER = 3, 2  # blocks: a stall time is a third of the first
HEADROOM = 2.0  # of links, while vectors go to reducers
LATE_HEADROOM = 1.5  # while slices go to everybody, after s+X: of those that were amended at the cut-off
SLOWEST = 4.0  # the slowest device that takes part needs so many times the expected one's seconds for a step
JITTER = 0.25  # of a step: none is begun that would end too late if it took as long as the one before
# Seconds of one core for each parameter, about twice what docs/measurements.md has.
ENCODE_S, REDUCE_S, OUTER_S = 2e-8, 1e-8, 6e-8
LOG_BYTES = 64 << 20  # of a round's log, which every validator gets of every miner
TRAINING = 2  # a round trains so many times as long as it does everything else, where nothing else is asked
MOST_ROUND_S = 1500  # ... but not for longer than as long, if the round is longer than this then
SHIFT_SHARE = 4  # with overlap: the average is there in the first quarter of a round, which costs nothing (learning.md)
STEP_FLOP = 6.0  # for each parameter and token


class Table(BaseModel):
    """A section of a preset."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Expect(Table):
    """Whom a run is made for; links in Mbit/s, speeds in TFLOP/s that training reaches (not those of a data sheet)."""

    down_mbit: float = Field(gt=0)
    up_mbit: float = Field(gt=0)
    tflops: float = Field(gt=0)  # of the expected device
    fastest_tflops: float = Field(gt=0)  # of the fastest one worth expecting: its steps are the most of a round
    miners: int = Field(ge=1)
    reducers: int = Field(ge=1)  # so many of the miners can be dialled
    validators: int = Field(ge=1)


@dataclass(frozen=True, slots=True)
class Where:
    """The chain."""

    block_s: float
    finality: int  # blocks from the newest to the newest final one, at most
    least_length: int  # blocks of a round that its commitments fit, by the chain's quota


@dataclass(frozen=True, slots=True)
class Work:
    """The run."""

    num_coords: int
    uplink_bytes: int  # of one encoded vector, as miners send it
    output_bytes: int  # and as reducers publish it
    tokens_per_step: int
    log_bytes: int  # of one step, at most


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asked of the rule; None: not asked."""

    overlap: bool = False  # a round is averaged while the next one is trained
    steps: int | None = None  # of a round, of the expected device
    round_s: float | None = None
    step_s: float | None = None  # on the expected device; else by its speed
    expect: Expect | None = None  # instead of the preset's
    block_s: float | None = None  # of the chain where the run will be, as are these
    tempo: int | None = None
    quota_bytes: int | None = None

    @property
    def anything(self) -> bool:
        """Is a round asked for, whatever the preset says of it?"""
        return (self.steps, self.round_s, self.step_s, self.expect) != (None, None, None, None)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Of a round, beside training; see above."""

    commit: int  # M
    finality: int  # f
    scatter: int  # W
    reduce: int  # R
    transfer: int
    map: int  # V
    outer: int  # the outer step
    lead: int  # B
    least: int  # that a whole round must have

    overlap: bool = False

    @property
    def exchange(self) -> int:
        """From s+D to s+Y."""
        scatter, transfer = max(self.scatter, self.finality), max(self.transfer, self.finality)
        return scatter + self.reduce + transfer + self.map

    @property
    def total(self) -> int:
        """Of a round, that none of its training has."""
        return self.commit if self.overlap else self.commit + self.exchange + self.finality + self.lead

    @property
    def shortest(self) -> int:
        """Blocks of a round, with one of training."""
        if not self.overlap:
            return max(self.least, self.total + 1)
        return max(self.least, self.total + self.exchange + self.finality + self.outer + 1)

    def wanted(self, most: int) -> int:
        """Of training, where a person asked for nothing else. most: blocks of a round, if it then still trains for as
        long as it does everything else."""
        if self.overlap:
            return SHIFT_SHARE * (self.exchange + self.finality + self.outer) - self.total
        return max(self.total, min(TRAINING * self.total, most - self.total))

    def offsets(self, training: int) -> dict[str, Any]:
        """The manifest's `timing`, but for its first block."""
        commit = training + self.commit
        output = commit + max(self.scatter, self.finality) + self.reduce
        map_ = commit + self.exchange
        return {
            "finality": self.finality,
            "roster_lead": max(self.lead, self.commit) if self.overlap else self.lead,
            "commit_margin": self.commit,
            "commit": commit,
            "reduce_margin": self.reduce,
            "output": output,
            "map": map_,
            "length": commit if self.overlap else map_ + self.finality + self.lead,
            "transfer": self.transfer,
            "overlap": self.overlap,
        }


# Fields that `choose` gives, of some round: for a draft of a manifest whose round is not chosen yet.
ANY_ROUND: dict[str, Any] = {
    "timing": {"first_block": 1 << 20} | Blocks(1, 1, 1, 1, 1, 1, 1, 1, 1).offsets(1),
    "inner": {"nominal_steps": 1 << 20, "max_steps": 1 << 20},
    "average": {"token_cap": 1},
}


def choose(work: Work, where: Where, expect: Expect, asked: Asked) -> dict[str, Any]:
    """Sections of the manifest: offsets, nominal and most steps of a round, the cap on tokens.

    Asked for neither steps nor a length, a round trains for twice as long as it does everything else, or once in long
    rounds; with overlap so long that the average comes in its first quarter; or longer where it must be longer. Raises
    ConfigError, in one line with the numbers, for what does not fit.
    """
    flop = STEP_FLOP * work.num_coords * work.tokens_per_step
    step_s = asked.step_s or flop / (expect.tflops * 1e12)
    beside = overhead(work, where, expect, step_s, overlap=asked.overlap)
    training = _training(beside, where, step_s, asked)
    nominal = asked.steps or max(1, int(training * where.block_s / step_s))
    fastest_s = min(step_s, flop / (expect.fastest_tflops * 1e12))
    ahead = beside.total if asked.overlap else beside.lead
    fastest = int((training + ahead) * where.block_s / fastest_s)  # it trains ahead
    most = max(nominal, min(fastest, LOG_BYTES // work.log_bytes), 1)
    return {
        "timing": beside.offsets(training),
        "inner": {"nominal_steps": nominal, "max_steps": most},
        "average": {"token_cap": most * work.tokens_per_step},
    }


def overhead(work: Work, where: Where, expect: Expect, step_s: float, *, overlap: bool = False) -> Blocks:
    """What a round has beside training. The slowest link is the expected one, of a reducer."""
    sent, made = 8 * work.uplink_bytes, 8 * work.output_bytes
    down, up = expect.down_mbit * 1e6, expect.up_mbit * 1e6
    others = expect.miners - 1
    scatter_s = max(sent / up, sent * others / expect.reducers / down)
    gather_s = max(made / down, made * (others + expect.validators) / expect.reducers / up)

    def blocks(seconds: float) -> int:
        return math.ceil(seconds / where.block_s)

    return Blocks(
        commit=INCLUSION + blocks(JITTER * SLOWEST * step_s + ENCODE_S * work.num_coords),
        finality=where.finality,
        scatter=max(LEAST_SCATTER, blocks(HEADROOM * scatter_s)),
        reduce=INCLUSION + blocks(REDUCE_S * work.num_coords * expect.miners / expect.reducers),
        transfer=max(LEAST_TRANSFER, blocks(LATE_HEADROOM * gather_s), blocks(HEADROOM * gather_s) - 1),
        map=INCLUSION,
        outer=blocks(OUTER_S * work.num_coords),
        lead=max(where.finality, blocks(OUTER_S * work.num_coords)),
        least=where.least_length,
        overlap=overlap,
    )


def slowest_goodput(expect: Expect) -> float:
    """Bytes/s that the slowest link still gives: the round has this headroom, so no more is asked of anybody."""
    return round(expect.up_mbit * 1e6 / 8 / HEADROOM, 1)


def _training(beside: Blocks, where: Where, step_s: float, asked: Asked) -> int:
    """Blocks of training. Raises ConfigError."""
    needed = 1 if asked.steps is None else max(1, math.ceil(asked.steps * step_s / where.block_s))
    if asked.round_s is None:
        wanted = beside.wanted(int(MOST_ROUND_S / where.block_s)) if asked.steps is None else needed
        return max(wanted, beside.shortest - beside.total)
    length = int(asked.round_s / where.block_s + 1e-9)
    least = max(beside.shortest, beside.total + needed)
    if length < least:
        raise ConfigError(_too_short(beside, where, step_s, asked, least))
    return length - beside.total


def _too_short(beside: Blocks, where: Where, step_s: float, asked: Asked, least: int) -> str:
    minutes = math.ceil(least * where.block_s / 6) / 10
    b = beside
    parts = (
        f"commit {b.commit}, scatter {max(b.scatter, b.finality)}, reduce {b.reduce}, gather "
        f"{max(b.transfer, b.finality)}, map {b.map}, finality {b.finality}, "
        + (f"outer step {b.outer}" if b.overlap else f"roster {b.lead}")
    )
    after = b.commit + b.exchange + b.finality + (b.outer if b.overlap else b.lead)
    why = f"{after} blocks of {where.block_s:g} s {'after' if b.overlap else 'beside'} training ({parts})"
    if least == b.least > after + 1:
        why += f", and {b.least} in all for the chain's quota"
    left = int(asked.round_s / where.block_s) - b.total if asked.round_s else 0
    steps = f", and {asked.steps} steps of {step_s:.3g} s" if asked.steps is not None else ""
    fewer = int(left * where.block_s / step_s)
    hint = f", or at most --steps {fewer}" if asked.steps is not None and fewer >= 1 and least > b.shortest else ""
    return (
        f"--round-minutes {(asked.round_s or 0) / 60:g} is too short: a round takes {why}{steps}; expected at least "
        f"{minutes:g} minutes{hint}, or faster links (--link)"
    )


def utilisation(timing: TimingSection) -> str:
    """How much of a round is trained in, for a person."""
    t, training = timing, timing.commit - timing.commit_margin
    ahead = min(t.length, training + t.roster_lead)
    beside = "; the next round is trained meanwhile" if t.overlap else ""
    return (
        f"training takes {training} of a round's {t.length} blocks ({100 * training / t.length:.0f} %), {ahead} "
        f"({100 * ahead / t.length:.0f} %) of a miner that trains ahead; scatter {scatter_blocks(t)}, gather "
        f"{t.transfer}{beside}"
    )


def scatter_blocks(timing: TimingSection) -> int:
    return timing.output - timing.reduce_margin - timing.commit
