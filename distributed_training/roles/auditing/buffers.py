"""What a miner shows a validator of the buffers of its error feedback, chunk by chunk, each under the roots that its
record names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from distributed_training.averaging.codecs.base import Vector
from distributed_training.averaging.feedback import carried, is_encoding, numbers
from distributed_training.averaging.implied import Kept
from distributed_training.averaging.plan import RoundPlan
from distributed_training.errors import WireError
from distributed_training.network.base import Stream
from distributed_training.protocol.merkle import digest, read_shown, shown_bytes
from distributed_training.protocol.types import NO_ROOT, WorkRecord
from distributed_training.roles.chunks import GLANCE, LOOK


@dataclass(frozen=True, slots=True)
class Feedback:
    """Of so many chunks asked for, what came."""

    asked: int = 0
    kept: Mapping[int, Kept] = field(default_factory=dict[int, Kept])

    @property
    def enough(self) -> bool:
        """Can a vector be judged by it? Which chunks it is, is the beacon's choice, not the miner's."""
        return 0 < self.asked <= 2 * len(self.kept)


NO_FEEDBACK = Feedback()
NOT_LEFT = "its feedback is not what its vector leaves out"


async def ask_feedback(
    stream: Stream, plan: RoundPlan, record: WorkRecord, drawn: Sequence[int], kept: dict[int, Kept], limit_s: float
) -> None:
    """Fill `kept` as it comes. drawn: all that may be asked for, or at a glance one. Raises WireError for what is not
    under the record's roots, or no number."""
    await stream.write(GLANCE if len(drawn) == 1 else LOOK, limit_s)
    roots = record.feedback_start, record.feedback_end
    digests = [await _digests(stream, plan, root, drawn, limit_s) for root in roots]
    for chunk in drawn:
        first, last = plan.layout.coords(chunk)
        start, end = [await _chunk(stream, 4 * (last - first), each, chunk, limit_s) for each in digests]
        if end is not None:
            kept[chunk] = Kept(None if start is None else carried(start, plan.uplink), end)


def check_feedback(plan: RoundPlan, chunks: Mapping[int, bytes], kept: Mapping[int, Kept]) -> None:
    """Raises WireError for a buffer that is not what its chunk leaves out."""
    for index in sorted(set(chunks) & set(kept)):
        chunk = plan.uplink.parse(chunks[index], plan.layout, index)
        if not is_encoding(chunk, kept[index].end, plan.layout, plan.uplink):
            raise WireError(NOT_LEFT)


async def _digests(
    stream: Stream, plan: RoundPlan, root: bytes, drawn: Sequence[int], limit_s: float
) -> Mapping[int, bytes] | None:
    count = plan.layout.num_chunks
    said = await stream.read(shown_bytes(count, drawn), limit_s)
    if root == NO_ROOT:
        if said:
            raise WireError("probe: a buffer where the record names none")
        return None
    return read_shown(said, count, drawn, root)


async def _chunk(
    stream: Stream, size: int, digests: Mapping[int, bytes] | None, chunk: int, limit_s: float
) -> Vector | None:
    data = await stream.read(size, limit_s)
    if digests is None:
        if data:
            raise WireError("probe: a buffer where the record names none")
        return None
    if len(data) != size or digest(data) != digests[chunk]:
        raise WireError(f"probe: chunk {chunk} of a buffer is not the committed one")
    values = numbers(data)
    if not np.isfinite(values).all():
        raise WireError(f"probe: a number in chunk {chunk} of a buffer is not finite")
    return values
