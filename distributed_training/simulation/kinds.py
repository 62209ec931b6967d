"""What can go wrong in a simulation, by name."""

from __future__ import annotations

from typing import Literal, cast, get_args

FaultKind = Literal["none", "churn", "loss", "partition", "crash", "freeze", "chain", "all"]
FAULTS = cast(tuple[FaultKind, ...], get_args(FaultKind))
