"""A node that says nothing for long says where it is and what it waits for: silence would look like a hang."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from distributed_training.ongoing import duration
from distributed_training.roles.parts import Parts
from distributed_training.stillness import clocks

QUIET_S = 300.0

log = logging.getLogger(__name__)


class _Heard(logging.Handler):
    """When this node last said anything that an operator sees, by the loop's clock."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._now = asyncio.get_running_loop().time
        self.at = self._now()

    def emit(self, record: logging.LogRecord) -> None:
        self.at = self._now()

    @property
    def quiet_s(self) -> float:
        return self._now() - self.at


async def heartbeat(parts: Parts, quiet_s: float = QUIET_S) -> None:
    """One line whenever nothing was said for `quiet_s`. Runs until cancelled."""
    heard, ours = _Heard(), logging.getLogger("distributed_training")
    ours.addHandler(heard)
    try:
        while True:
            await asyncio.sleep(max(1.0, quiet_s - heard.quiet_s))
            if heard.quiet_s >= quiet_s:
                log.info("nothing new for %s: %s", duration(heard.quiet_s), waits_for(parts))
    finally:
        ours.removeHandler(heard)


def waits_for(parts: Parts) -> str:
    """Round, phase, and the block that it cannot go on without."""
    where, head = parts.metrics.words.where, parts.clock.head
    if where is None:
        return f"looking for a state to begin with; newest block {head}"
    index, phase = where
    round_ = parts.manifest.round(index)
    marks = (
        (round_.start_block, "the round begins"),
        (round_.commit_block, "work is committed"),
        (round_.output_block, "slices are on chain"),
        (round_.map_block, "it is settled"),
    )
    at = f"round {index}" + (f", {phase}" if phase else "")
    block, what = next(((b, w) for b, w in marks if b > parts.clock.finalized), (0, ""))
    if not block:
        return f"{at}: behind, its last block {round_.map_block} is final; newest block {head}"
    left_s = parts.clock.seconds_until(block)
    when = datetime.fromtimestamp(clocks()[0] + left_s, UTC)
    return f"{at}: {what} in block {block}, in about {duration(left_s)} ({when:%H:%M} UTC); newest block {head}"
