"""Another world than the local one: blocks, rounds, links and how long work takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed_training.network.links import LinkProfile
from distributed_training.roles.mining.work import Worker
from distributed_training.roles.parts import Parts

Timed = Callable[[str, Worker, Parts], Worker]  # node's name, what computes -> what takes virtual time for it


@dataclass(frozen=True, slots=True)
class Setting:
    block_s: float
    sections: Mapping[str, Any]  # of the manifest, over those that a simulation has anyway
    links: LinkProfile
    timed: Timed
    settle_s: float = 0.0  # that the outer step takes: nobody has settled a round before
