"""From which feedback a sender's next vector may start (protocol section 5): public, so it is part of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distributed_training.protocol.rules.slices import FAILED_ROUNDS
from distributed_training.protocol.types import Carry, Left


def next_left(carry: Carry, ends: Mapping[bytes, bytes]) -> tuple[Left, ...]:
    """After an applied round. ends: by public key, `feedback_end` of the vectors that were included.

    Whoever is included goes on from what this vector left out. Who is not goes on from the last one that was, and from
    nothing once that is as long ago as a failure is remembered.
    """
    former = {x.public_key: replace(x, age=x.age + 1) for x in carry.left if x.age + 1 < FAILED_ROUNDS}
    now = former | {key: Left(key, end, 0) for key, end in ends.items()}
    return tuple(now[key] for key in sorted(now))
