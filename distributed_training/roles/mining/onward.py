"""Overlap: training that goes on from a miner's own end, before the average is there (protocol section 3).

Its own end is the state that it began at less what it committed, *decoded*: whoever holds the state and the committed
bytes has the same numbers. When the round is settled, training moves by (next state - own end) between two steps and
keeps what it did meanwhile. Legend: d parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from distributed_training.averaging.codecs.base import Codec, Layout
from distributed_training.training.outer import RunState, Vector


def own_end(start: Vector, chunks: Iterable[tuple[int, bytes]], layout: Layout, codec: Codec) -> Vector:
    """fp32 [d]: `start` less the committed vector, all of whose chunks come as (index, bytes). `start` stays as it is.
    Raises WireError for malformed chunks."""
    end = np.empty_like(start)
    for index, data in chunks:
        part = slice(*layout.coords(index))
        np.subtract(start[part], codec.parse(data, layout, index).decode(), out=end[part])
    return end


def shift_from(end: Vector, state: Vector) -> Vector:
    """What training moves by, fp32 [d]; it takes the place of `end`, which is no longer needed."""
    return np.subtract(state, end, out=end)


class Onward:
    """Where one round's training goes on, and the state that it is shifted to once that is known."""

    def __init__(self, end: Vector, began_at: bytes, applied: int) -> None:
        """end: `own_end`. began_at: wire root of the vector in it. applied: the former round's state's count."""
        self.began_at, self._end = began_at, end
        self.applied = (
            applied + 1
        )  # as if the former round were applied: who begins at the state has the same rate then
        self.state: RunState | None = None
        self.shifted = False

    @property
    def end(self) -> Vector:
        """Where it begins. Of no use once it was shifted."""
        return self._end

    def settle(self, state: RunState) -> None:
        """The former round is settled: shift to this before the next step."""
        self.state = state

    def shift(self, step: int) -> Vector | None:
        """Asked by the training thread before each step; the vector to move by, once."""
        if self.state is None or self.shifted:
            return None
        self.shifted = True
        return shift_from(self._end, self.state.params)
