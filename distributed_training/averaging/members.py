"""Whom a slice includes, and what their work records say."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress

from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.protocol.manifest import RunManifest
from distributed_training.protocol.rules import weighting
from distributed_training.protocol.sections import AverageSection
from distributed_training.protocol.types import Candidate, OutputRecord, WorkRecord

Included = tuple[bool, ...]  # by sender: has it at least one chunk in the slice?


def sender_weight(work: WorkRecord, plan: RoundPlan, average: AverageSection) -> float:
    """a_i of section 6, before normalisation."""
    return weighting.raw_weight(work.tokens, work.norm, plan.tau, average)


def included_bits(record: OutputRecord) -> Included:
    first, *others = set(record.included)  # nearly always one
    return tuple(map(any, zip(first, *others, strict=True))) if others else first


def included(record: OutputRecord, plan: RoundPlan) -> tuple[Candidate, ...]:
    """Senders with at least one chunk in the slice."""
    return tuple(compress(plan.candidates, included_bits(record)))


def included_keys(record: OutputRecord, plan: RoundPlan) -> tuple[bytes, ...]:
    """Their public keys."""
    return tuple(c.public_key for c in included(record, plan))


def check_members(
    record: OutputRecord, works: Mapping[bytes, WorkRecord], plan: RoundPlan, manifest: RunManifest
) -> None:
    """Who is included has weight. Raises WireError."""
    for key in included_keys(record, plan):
        if key not in works or sender_weight(works[key], plan, manifest.average) <= 0:
            raise WireError("output record: includes a sender without a work record or without weight")
